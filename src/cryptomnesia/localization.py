"""The verb `localize`: from prompts to maps of what is memorized in every picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cryptomnesia.calibration.masks import Mask, ReferenceMaps
from cryptomnesia.calibration.stored import Calibration, calibration_of, resolved
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers import Localizer, localizers_of
from cryptomnesia.localizers.mapping import mapped
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.generation import Progress, check_call, images_of


@dataclass(frozen=True)
class Located:
    """A generated picture and where it is memorized.

    Attributes:
        prompt: its caption.
        seed: its seed.
        image: (3, H, W) in [0, 1].
        maps: localizer's name → (h, w) at latent resolution, in the localizer's unit, ≥ 0; NaN where the network's
            output is not finite, so that there is no map.
        errors: localizer's name → standard error of the map, (h, w), before its negative values were cut, for `collapse`
            before its filter; only for maps that are estimated, NaN where one set of probes tells nothing about it.
        masks: localizer's name → what the map says; empty without a calibration. The mask of a map of NaN has no
            pixels, and its fraction and p-values are NaN.
    """

    prompt: str
    seed: int
    image: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)


def localize(
    pipe: Any,
    prompts: str | Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    images_per_prompt: int = 1,
    localizers: str | Any | Sequence[str | Any] = "auto",
    checkpoint: Any = None,
    calibration: Calibration | str | Path | None = None,
    pixel_fpr: float = 0.05,
    smooth: float = 0.0,
    smallest: int = 1,
    batch_size: int = 8,
    progress: Progress | None = None,
    **call: Any,
) -> Iterator[Located]:
    """Generate prompts and map every picture, all maps from the one generation.

    Args:
        pipe: a pipeline of a known family.
        prompts: one caption or several.
        seeds: one per image; 0, 1, … for the images of every prompt by default.
        images_per_prompt: how often every prompt is made.
        localizers: names or objects; `auto` is the default of the pipeline's family.
        checkpoint: a pipeline around a less-trained checkpoint, for localizers that are compared with one.
        calibration: makes masks of the maps, as an object or a file; any that does not fit is refused. Without one the
            file beside the model is used if it fits and has these maps, and otherwise there are no masks.
        pixel_fpr: share of the pixels of reference pictures above a mask's threshold, in (0, 1).
        smooth: standard deviation of a Gaussian blur before the threshold, in map pixels.
        smallest: regions of fewer map pixels are dropped.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.
        **call: arguments of every call, named as the pipeline names them; its own defaults for the rest.

    Raises:
        UsageError: at once, before anything is generated, for whatever does not fit.
    """
    setup = Setup.of(pipe, call, checkpoint)
    methods = localizers_of(localizers, setup)
    check_call(setup)
    captions, numbers = images_of(setup, prompts, seeds, images_per_prompt)
    references = references_for(setup, methods, calibration)
    for reference in references.values():
        reference.threshold(pixel_fpr, smooth)

    def located() -> Iterator[Located]:
        for batch, maps in mapped(
            setup, captions, numbers, methods, batch_size=batch_size, decode=True, progress=progress
        ):
            masks = {
                name: reference.mask(maps[name].values, fpr=pixel_fpr, smooth=smooth, smallest=smallest)
                for name, reference in references.items()
            }
            for row, prompt in enumerate(batch.prompts):
                yield Located(
                    prompt,
                    batch.seeds[row],
                    batch.images[row],
                    {name: heat.values[row] for name, heat in maps.items()},
                    {name: heat.errors[row] for name, heat in maps.items() if heat.errors is not None},
                    {name: mask.image(row) for name, mask in masks.items()},
                )

    return located()


def references_for(
    setup: Setup, localizers: Sequence[Localizer], calibration: Calibration | str | Path | None
) -> dict[str, ReferenceMaps]:
    """What turns the localizers' maps into masks, by name.

    Args:
        setup: of the generation.
        localizers: that make the maps.
        calibration: must fit. If None, the file beside the model is used as far as it fits.

    Raises:
        UsageError: if a calibration was given and does not fit.
    """
    if calibration is None and calibration_of(setup.pipe) is None:
        return {}
    fitted = resolved(calibration, setup.pipe)
    digest = "" if setup.checkpoint is None else weights_digest(setup.checkpoint)
    try:
        fitted.check(setup)
        fitted.check_localizers(localizers, digest)
    except UsageError:
        if calibration is not None:
            raise
        return {}
    return {method.name: fitted.map_reference(method) for method in localizers}
