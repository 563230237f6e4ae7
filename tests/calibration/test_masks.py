from dataclasses import replace

import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.calibration.masks import ReferenceMaps
from cryptomnesia.calibration.stored import split


def reference_maps(count=90):
    return torch.rand((count, 8, 8), generator=torch.Generator().manual_seed(0))


def references():
    """A third of the maps fixes the threshold, the others are the null."""
    fitting, null = split(90)
    return ReferenceMaps(reference_maps()[fitting], reference_maps()[null])


def test_masks_keep_the_rate_on_new_references():
    reference = references()
    fresh = torch.rand((200, 8, 8), generator=torch.Generator().manual_seed(1))
    mask = reference.mask(fresh, fpr=0.05)
    assert mask.pixels.float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert (mask.p_value <= 0.1).double().mean() <= 0.15
    assert torch.equal(mask.pixels, mask.regions > 0)


def test_the_mean_of_a_map_has_a_p_value_of_its_own():
    reference = references()
    # a little brighter everywhere: no pixel stands out, but the mean does
    mask = reference.mask(torch.cat([reference_maps(1), 0.2 + 0.8 * reference_maps(1), torch.zeros(1, 8, 8)]))
    expected = reference_maps(1).double().mean().item()
    assert mask.mean.tolist() == pytest.approx([expected, 0.2 + 0.8 * expected, 0.0])
    assert mask.mean_p_value[1].item() == pytest.approx(1 / 61)
    assert mask.mean_p_value[2].item() == 1.0
    assert mask.p_value[1].item() > 0.1
    one = mask.image(1)
    assert one.pixels.shape == (8, 8)
    assert one.mean_p_value.item() == mask.mean_p_value[1].item()


def test_a_bright_region_is_found_whole_and_is_no_accident():
    reference = references()
    bright = 0.3 * reference_maps(1)
    bright[0, 2:6, 2:6] += 2.0
    bright[0, 0, 7] = 2.0
    mask = reference.mask(bright, fpr=0.05, smallest=2)
    assert mask.pixels[0, 2:6, 2:6].all()
    assert mask.fraction.item() == 16 / 64
    assert mask.regions.unique().tolist() == [0, 1]
    assert mask.p_value.item() == pytest.approx(1 / 61)
    both = reference.mask(bright, fpr=0.05)
    assert both.regions.unique().tolist() == [0, 1, 2]
    smooth = reference.mask(bright, fpr=0.05, smooth=1.0)
    assert smooth.pixels[0, 3:5, 3:5].all()


def test_masks_explain_what_does_not_fit():
    reference = references()
    with pytest.raises(UsageError, match="pixel rate 1e-05 for 1920 reference pixels"):
        reference.threshold(1e-5)
    with pytest.raises(UsageError, match=r"got maps of \(4, 4\), the reference has \(8, 8\)"):
        reference.mask(torch.zeros(1, 4, 4))
    with pytest.raises(UsageError, match="blur of -1 pixels"):
        reference.threshold(0.05, smooth=-1.0)
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(UsageError, match=f"got the pixel rate {rate:g}; give one between 0 and 1"):
            reference.threshold(rate)


def test_a_map_that_is_not_finite_has_no_p_value():
    maps = reference_maps(2)
    maps[1, 3, 3] = torch.nan
    mask = references().mask(maps)
    for values in (mask.fraction, mask.p_value, mask.mean, mask.mean_p_value):
        assert values[0].isfinite()
        assert values[1].isnan()
    assert mask.p_value.dtype == torch.float64


def test_a_reference_remembers_what_belongs_to_its_maps_only():
    """A copy with other maps computes its threshold anew."""
    reference = references()
    first = reference.mask(reference_maps(1))
    again = reference.mask(reference_maps(1))
    assert torch.equal(first.pixels, again.pixels)
    darker = replace(reference, fitting=0.1 * reference.fitting, null=0.1 * reference.null)
    assert darker.mask(reference_maps(1)).fraction.item() > 0.8
