"""What a localizer of another package returns is checked."""

import pytest
import torch

from cryptomnesia import Localizer, Map, UsageError, localize
from cryptomnesia.testing.miniatures import CALL, stable_diffusion


class Wrong(Localizer):
    name = "wrong"

    def __init__(self, found):
        self._found = found

    def map(self, watched):
        return self._found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Map(torch.zeros(3, 8, 8)), r"values of shape \(3, 8, 8\)"),
        (Map(torch.zeros(1, 8, 8)), r"values of shape \(1, 8, 8\)"),
        (Map(torch.zeros(2, 64)), r"values of shape \(2, 64\)"),
        (Map(torch.zeros(2, 8, 8, dtype=torch.long)), "floating-point values"),
        (torch.zeros(2, 8, 8), "returned Tensor"),
        (None, "returned NoneType"),
        (Map(torch.full((2, 8, 8), -1.0)), "returned negative values"),
        (Map(torch.zeros(2, 8, 8), torch.zeros(2, 4, 4)), "returned errors of shape"),
    ],
)
def test_maps_of_another_shape_or_type_are_refused_with_the_localizers_name(found, words):
    with pytest.raises(UsageError, match=words) as refused:
        list(localize(stable_diffusion(), ["a red circle", "a blue star"], localizers=Wrong(found), **CALL))
    assert str(refused.value).startswith("the localizer wrong returned ")
