"""From prompts to maps: generate, and say for every picture where it is memorized."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cryptomnesia.calibration.maps import MapCalibration
from cryptomnesia.localizers import MapReference, Mask
from cryptomnesia.localizers.methods import Mapped, Method, check_methods, mapped, resolved
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import Progress


@dataclass(frozen=True)
class Located:
    """A generated picture and where it is memorized.

    Attributes:
        prompt: its caption.
        seed: its seed.
        image: (3, H, W) in [0, 1].
        maps: method name → (h, w) at latent resolution, in the method's units, ≥ 0.
        errors: method name → standard error of the map, (h, w), before its negative values were cut, and of `collapse`
            before its filter; only of methods that are estimated, NaN where a single set of probes tells nothing of it.
        masks: method name → what the map says; empty without a calibration.
    """

    prompt: str
    seed: int
    image: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)


def localize(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    methods: Sequence[Method | str],
    *,
    other: Any = None,
    calibration: MapCalibration | None = None,
    rate: float = 0.05,
    smooth: float = 0.0,
    smallest: int = 1,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[Located]:
    """Generate `prompts[i]` with `seeds[i]` and map every picture, all methods from the one generation.

    An image's probes come from its seed, so that its maps do not depend on the batch it was made in.

    Args:
        pipe: a pipeline of a known family.
        prompts: one per image.
        seeds: one per image.
        sampling: the settings.
        methods: made by `method`, or names that it knows.
        other: a pipeline around a less-trained checkpoint, for methods that compare with one.
        calibration: of this setup, makes masks of the maps; any other is refused.
        rate: share of the pixels of reference pictures above a mask's threshold.
        smooth: standard deviation of a Gaussian blur before the threshold, in map pixels.
        smallest: drop regions of fewer map pixels.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.

    Raises:
        UsageError: at once, before anything is generated, if a method lacks what it needs or the calibration does not
            fit.
    """
    methods = resolved(methods)
    check_methods(pipe, sampling, methods, other)
    references: Mapping[str, MapReference] = {}
    if calibration is not None:
        calibration.check(pipe, sampling, methods, other)
        references = {each.name: calibration.references[each.name] for each in methods}
        for reference in references.values():
            reference.threshold(rate, smooth)
    batches = mapped(
        pipe, prompts, seeds, sampling, methods, other, batch_size=batch_size, decode=True, progress=progress
    )
    return _located(batches, references, rate=rate, smooth=smooth, smallest=smallest)


def _located(
    batches: Iterator[Mapped],
    references: Mapping[str, MapReference],
    *,
    rate: float,
    smooth: float,
    smallest: int,
) -> Iterator[Located]:
    """Image by image, with masks where there are references."""
    for batch, maps, errors in batches:
        masks = {
            name: reference.mask(maps[name], rate=rate, smooth=smooth, smallest=smallest)
            for name, reference in references.items()
        }
        for row, prompt in enumerate(batch.prompts):
            yield Located(
                prompt,
                batch.seeds[row],
                batch.images[row],
                {name: values[row] for name, values in maps.items()},
                {name: values[row] for name, values in errors.items()},
                {name: mask.image(row) for name, mask in masks.items()},
            )
