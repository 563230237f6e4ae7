"""What tests of methods need, also those of other packages: named checks, closed forms and miniature pipelines.

`check_detector`, `check_localizer` and `check_mitigation` give the checks of a method, each with a name. Call them one
after the other, hand them all to `run_checks`, or parametrize a test of pytest with them.
"""

from cryptomnesia.testing.checks import Check, CheckError, run_checks
from cryptomnesia.testing.detector_checks import check_detector
from cryptomnesia.testing.localizer_checks import check_localizer
from cryptomnesia.testing.mitigation_checks import check_mitigation

__all__ = ["Check", "CheckError", "check_detector", "check_localizer", "check_mitigation", "run_checks"]
