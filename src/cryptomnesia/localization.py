"""The verb `localize`: where generated images are memorized."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cryptomnesia.calibration.masks import Mask, ReferenceMaps, check_mask_settings
from cryptomnesia.calibration.stored import Calibration, calibration_of, resolved
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers import Localizer, localizers_of
from cryptomnesia.localizers.mapping import mapped
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import LocalizeSettings, Long
from cryptomnesia.tracing.generation import Progress, check_call, checked, images_of, real_number, whole_number

logger = logging.getLogger("cryptomnesia")


@dataclass(frozen=True)
class Located:
    """A generated image, and where it is memorized.

    Attributes:
        prompt: the caption of the image.
        seed: the seed of the image.
        image: (3, H, W) in [0, 1].
        maps: name of a localizer → its map, (h, w) at latent resolution, ≥ 0 in the localizer's unit; NaN where the
            network's output is not finite, so that there is no map.
        errors: name of a localizer that estimates its map → the standard error of the map, (h, w), before negative
            values were set to 0; for `collapse` that of the map before its filter, and for `settled-detail` what
            that error changes; NaN if there was one set of probes only.
        masks: name of a localizer → the pixels that count as memorized; empty without a calibration. The mask of a map
            of NaN has no pixels, and its fraction and p-values are NaN.
    """

    prompt: str
    seed: int
    image: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)


def localize(
    pipe: Any,
    prompts: str | Path | Iterable[str],
    *,
    seeds: Sequence[int] | None = None,
    images_per_prompt: int = 1,
    localizers: str | Any | Sequence[str | Any] = "auto",
    checkpoint: Any = None,
    calibration: Calibration | str | Path | None = None,
    pixel_fpr: float = 0.05,
    smooth: float = 0.0,
    smallest: int = 1,
    long: Long = "truncate",
    batch_size: int = 8,
    progress: Progress | None = None,
    **call: Any,
) -> Iterator[Located]:
    """Generate prompts, and map where every image is memorized. All maps of an image come from one generation.

    Args:
        pipe: a pipeline of a known family.
        prompts: one caption or several, or a file of them as a `Path`; `read_prompts` reads another column of a file.
        seeds: one per image; 0, 1, … for the images of every prompt by default.
        images_per_prompt: images to generate for every prompt.
        localizers: one or several, as names or objects; `auto` is the default of the pipeline's family.
        checkpoint: a pipeline around a less-trained checkpoint, for localizers that are compared with one.
        calibration: for this set-up and with these maps, as an object or a file; one that does not fit is refused. It
            turns maps into masks. By default `calibration.safetensors` in the folder that the pipeline was loaded from,
            if it fits; else there are no masks, and a warning says why it does not fit. `pixel_fpr`, `smooth` and
            `smallest` are refused without a calibration that fits.
        pixel_fpr: share of the pixels of reference images above the threshold of a mask, in (0, 1).
        smooth: standard deviation of a Gaussian blur before the threshold, in map pixels, ≥ 0.
        smallest: regions of fewer map pixels are dropped.
        long: what is done about prompts that are longer than the text encoders read: `truncate` cuts them off, as
            diffusers does it, `skip` leaves them out, and `error` refuses them. A warning says how many there are.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.
        **call: arguments of every call, named as the pipeline names them; its own defaults for the rest.

    Returns:
        An iterator over the images, in the order of prompts and seeds. Images are generated while it is iterated over.

    Raises:
        UsageError: at the call, before anything is generated, for arguments that do not fit together; and before the
            next batch, if masks are made and the pipeline was changed meanwhile so that the calibration does not fit
            any more.

    Example:
        for located in localize(pipe, ["a red circle on a blue ground"], localizers=["collapse"]):
            print(located.prompt, located.maps["collapse"].shape)
    """
    setup = Setup.of(pipe, call, checkpoint)
    check_call(setup)
    pixel_fpr, smooth = real_number("pixel_fpr", pixel_fpr), real_number("smooth", smooth)
    smallest = whole_number("smallest", smallest)
    check_mask_settings(pixel_fpr, smooth, smallest)
    methods = localizers_of(localizers, setup)
    captions, numbers = images_of(setup, prompts, seeds, images_per_prompt, long)
    settings = {"pixel_fpr": pixel_fpr, "smooth": smooth, "smallest": smallest}
    asked = [name for name, value in settings.items() if value != LocalizeSettings.model_fields[name].default]
    fitting = _fitting(setup, methods, calibration, needed_for=asked)
    references = {} if fitting is None else {method.name: fitting.map_reference(method) for method in methods}
    for reference in references.values():
        reference.threshold(pixel_fpr, smooth)

    batches = mapped(setup, captions, numbers, methods, batch_size=batch_size, decode=True, progress=progress)

    def check() -> None:
        if fitting is not None:
            _check_fit(fitting, setup, methods)

    def located() -> Iterator[Located]:
        for batch, maps in checked(batches, check, images=len(captions), batch_size=batch_size):
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
    """What turns the maps of localizers into masks, by the name of the localizer.

    Args:
        setup: of the generation.
        localizers: that make the maps.
        calibration: must fit if it is given. If it is None, the file beside the model is used if that fits.

    Raises:
        UsageError: if a calibration was given and does not fit.
    """
    fitting = _fitting(setup, localizers, calibration)
    return {} if fitting is None else {method.name: fitting.map_reference(method) for method in localizers}


def _fitting(
    setup: Setup,
    localizers: Sequence[Localizer],
    calibration: Calibration | str | Path | None,
    *,
    needed_for: Sequence[str] = (),
) -> Calibration | None:
    """The calibration of `references_for`, None if there is none beside the model, or none that fits.

    Args:
        setup: of the generation.
        localizers: that make the maps.
        calibration: must fit if it is given.
        needed_for: names of arguments that have an effect only on masks; with any of them there must be a calibration.

    Raises:
        UsageError: if there has to be a calibration, and there is none that fits.
    """
    if calibration is None and calibration_of(setup.pipe) is None:
        if needed_for:
            raise UsageError(
                f"got {', '.join(needed_for)} for masks, which need a calibration with these maps; make one with "
                f"`calibrate(…, localizers={[method.name for method in localizers]})` and give it as `calibration`, or "
                f"leave {', '.join(needed_for)} out"
            )
        return None
    fitting = resolved(calibration, setup.pipe)
    try:
        _check_fit(fitting, setup, localizers)
    except UsageError as error:
        if calibration is not None or needed_for:
            raise
        logger.warning("maps without masks: %s", error)
        return None
    return fitting


def _check_fit(calibration: Calibration, setup: Setup, localizers: Sequence[Localizer]) -> None:
    """Refuse a calibration that does not fit a set-up, or has not the maps of the localizers.

    Raises:
        UsageError: saying what does not fit.
    """
    calibration.check(setup)
    digest = "" if setup.checkpoint is None else weights_digest(setup.checkpoint)
    calibration.check_localizers(localizers, digest)
