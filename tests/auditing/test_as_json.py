import math

from cryptomnesia.auditing.as_json import finite


def test_numbers_that_are_not_finite_become_null():
    assert finite(1.5) == 1.5
    assert finite("nan") == "nan"
    assert finite(math.nan) is None
    assert finite((0.5, math.inf, [1, -math.inf])) == [0.5, None, [1, None]]
