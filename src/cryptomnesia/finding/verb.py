"""The verb `find`: does a model hold given pictures?"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cryptomnesia.engine import LOCAL, check_engine
from cryptomnesia.errors import UsageError
from cryptomnesia.finding.answers import Found
from cryptomnesia.finding.pictures import Picture, read_pictures
from cryptomnesia.finding.restoring import SIDE
from cryptomnesia.finding.work import Finding
from cryptomnesia.parts import Progress, run
from cryptomnesia.pipelines.loading import pipeline_of
from cryptomnesia.pipelines.origins.options import SETTINGS, parse_options
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.places import place
from cryptomnesia.settings import FindSettings, MeasureCanariesSettings
from cryptomnesia.statistics import needed_null

logger = logging.getLogger("cryptomnesia")

SAME = 0.05
"""Root mean square difference, of values in [0, 1], up to which a control is a copy of a picture that is looked for."""

PORTION = 256
"""Pictures with which a control is compared at a time."""

Captions = Sequence[str] | Mapping[str, str] | str | Path | None


def find(
    model: Any,
    images: Any,
    captions: Captions = None,
    controls: Any = None,
    *,
    control_captions: Captions = None,
    checkpoint: Any = None,
    output: str | Path | None = None,
    workers: int | None = None,
    engine: str = LOCAL,
    progress: Progress | None = None,
    **settings: Any,
) -> Found:
    """Say of every picture whether a model holds it, compared with controls.

    Args:
        model: a loaded pipeline, or the name of a model as `load_pipeline` takes it.
        images: the pictures: a path of a picture, a folder, a tar shard or a table; a picture of PIL, an array (H, W,
            3) or a tensor (3, H, W) in [0, 1]; or a list of these.
        captions: one text per picture, name of a file → text, or a file with the columns file_name and text; by
            default those that lie beside the files.
        controls: pictures of the same kind, as for `images`, that the model was not trained on: at least 1/alpha − 1.
            Without controls nothing is decided.
        control_captions: as `captions`.
        checkpoint: the base model that the model was trained further from: a loaded pipeline or a name.
        output: folder or URL of the search, with `found.json` and an HTML page per picture; a search that was stopped
            goes on there. Without one nothing is kept.
        workers: processes that share the work; one on this machine unless given. They load the model by its name.
        engine: `local` for this machine, or the Ray cluster whose machines do the work.
        progress: called with (what, done, in all).
        **settings: `alpha`, `fdr`, `seed`, `thumbnails`, `batch_size`, and how a model is loaded, as fields of
            `cryptomnesia.settings.FindSettings`. All other names are arguments of the pipeline's own call.

    Returns:
        The answers, one per picture, in their order.

    Raises:
        UsageError: for pictures or captions that cannot be used, controls that are too few, or a model that cannot be
            asked about pictures.

    Example:
        found = find("bundled", "suspects", controls="never-trained-on", output="found")
        found.answers[0].verdict
    """
    check_engine(engine)
    by_name = isinstance(model, str | Path) and isinstance(checkpoint, str | Path | None)
    if not by_name and (engine != LOCAL or (workers or 1) > 1):
        raise UsageError("got the model as an object, and several workers load it by its name; give its name")
    known = {name: value for name, value in settings.items() if name in FindSettings.model_fields}
    call = {name: value for name, value in settings.items() if name not in known and value is not None}
    if isinstance(model, str | Path):
        known["model"] = str(model)
    if isinstance(checkpoint, str | Path):
        known["checkpoint"] = str(checkpoint)
    given = FindSettings.resolve(known, environment={})
    pictures = read_pictures(images, captions)
    others = [] if controls is None else read_pictures(controls, control_captions, what="controls")
    others = without_copies(others, pictures)
    if engine != LOCAL:
        # a machine of a cluster need not see the files
        pictures, others = ([one.carried() for one in some] for some in (pictures, others))
    if not others:
        logger.warning("without controls nothing can be decided; give pictures like these that the model never saw")
    elif given.fdr is not None and (doubt := out_of_reach(len(pictures), len(others), given.alpha, given.fdr)):
        logger.warning("%s", doubt)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) if output is None else place(output)
        making = Making(given, call, pictures, others, folder)
        if not isinstance(model, str | Path):
            making = Making(given, call, pictures, others, folder, {"model": model, "checkpoint": checkpoint})
        gpu = None if given.device is None else given.device.startswith("cuda")
        return run(making, folder, engine=engine, workers=workers, gpu=gpu, progress=progress)


@dataclass(frozen=True)
class Making:
    """Makes the work, in the process that calls it.

    Attributes:
        settings: of the search.
        call: further arguments of the pipeline's call.
        pictures: to look for.
        controls: to compare them with.
        folder: of the search.
        objects: `model` and `checkpoint` where they are loaded already.
    """

    settings: FindSettings
    call: Mapping[str, Any]
    pictures: Sequence[Picture]
    controls: Sequence[Picture]
    folder: Path
    objects: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Finding:
        """The work, with the loaded model."""
        settings = self.settings
        setup = setup_of(settings, self.call, self.objects)
        return Finding(
            setup=setup,
            pictures=self.pictures,
            controls=self.controls,
            folder=self.folder,
            model=settings.model or type(setup.pipe).__name__,
            alpha=settings.alpha,
            fdr=settings.fdr,
            seed=settings.seed,
            thumbnails=settings.thumbnails,
            batch_size=settings.batch_size,
        )


def setup_of(
    settings: FindSettings | MeasureCanariesSettings, call: Mapping[str, Any], objects: Mapping[str, Any]
) -> Setup:
    """The loaded model, perhaps with its base, and the settings of its calls.

    Args:
        settings: which model, and how it is loaded and called.
        call: further arguments of the pipeline's call.
        objects: `model` and `checkpoint` where they are loaded already.
    """
    pipe, checkpoint = objects.get("model"), objects.get("checkpoint")
    pipe = pipeline_of(settings) if pipe is None else pipe
    if checkpoint is None and settings.checkpoint is not None:
        checkpoint = pipeline_of(settings, settings.checkpoint)
    given = {name: getattr(settings, setting) for name, setting in SETTINGS.items()}
    known = {name: value for name, value in given.items() if value is not None}
    return Setup.of(pipe, {**known, **parse_options(settings.option), **call}, checkpoint)


def without_copies(controls: Sequence[Picture], pictures: Sequence[Picture]) -> list[Picture]:
    """The controls that show none of the pictures; a warning names the others."""
    if not controls:
        return []
    looked_for = np.stack([_small(picture) for picture in pictures])
    kept = []
    for control in controls:
        small = _small(control).astype(np.float32)
        near = np.concatenate(
            [
                np.sqrt(((looked_for[first : first + PORTION] - small) ** 2).mean(axis=1)) / 255
                for first in range(0, len(looked_for), PORTION)
            ]
        )
        if near.min() <= SAME:
            logger.warning(
                "left out the control %s, which shows the picture %s", control.name, pictures[int(near.argmin())].name
            )
        else:
            kept.append(control)
    return kept


def out_of_reach(pictures: int, controls: int, alpha: float, fdr: float) -> str:
    """What a false-discovery rate takes, in words, if a picture that stands out alone cannot reach it; else "".

    With k of m pictures found the largest p-value may be `fdr`·k/m. There may be two p-values for each picture.
    """
    smallest = (2 if controls >= needed_null(alpha / 2) else 1) / (1 + controls)
    least = math.ceil(smallest * pictures / fdr - 1e-9)
    if least > pictures:
        return (
            f"no picture can be called retained at a false-discovery rate of {fdr:g} with {controls} controls; that "
            f"takes {needed_null(fdr / 2)} at least"
        )
    if least > 1:
        return (
            f"with {controls} controls pictures are called retained at a false-discovery rate of {fdr:g} only if "
            f"{least} of the {pictures} or more stand out; with {needed_null(fdr / (2 * pictures))} one is enough"
        )
    return ""


def _small(picture: Picture) -> np.ndarray:
    """The picture at `SIDE` × `SIDE` pixels, flat, as eight bits, of which many fit into memory."""
    return picture.fitted(SIDE, SIDE).ravel()
