"""Ask a trained model about canaries and the reserve.

The score of a picture is the logarithm of its denoising error under its caption, negative, in the mean over noise
levels (`cryptomnesia.finding.measuring`). With a base model the logarithm of the base's error is added, so that the
score says what the training has changed. Every picture gets the same noises.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from cryptomnesia.errors import NotFiniteError, UsageError
from cryptomnesia.finding.measuring import Measure, check_findable
from cryptomnesia.finding.verb import setup_of
from cryptomnesia.finetuning.canaries import drawing
from cryptomnesia.finetuning.canaries.exposure import doses, exposed
from cryptomnesia.finetuning.canaries.manifest import Canary, Manifest
from cryptomnesia.finetuning.canaries.result import DoseResponse
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.places import make, place
from cryptomnesia.settings import MeasureCanariesSettings
from cryptomnesia.statistics import needed_null, rounded_up
from cryptomnesia.tracing.generation import check_call

Progress = Callable[[str, int, int], None]


def measure_canaries(
    model: Any,
    manifest: str | Path | Manifest,
    *,
    checkpoint: Any = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> DoseResponse:
    """Say how much a model has learnt of canaries, by their repetitions.

    The pictures are drawn again from the seed of the manifest, so the training set is not needed.

    Args:
        model: a loaded pipeline, or the name of a model as `load_pipeline` takes it.
        manifest: what `make_canaries` returned, the file `canaries.json`, or the folder that has it.
        checkpoint: the base model that the training began from: a loaded pipeline or a name.
        output: folder for `exposure.json` and `exposure.svg`. Without one nothing is written.
        progress: called with (what, done, in all).
        **settings: `alpha`, `seed`, `batch_size`, and how a model is loaded, as fields of
            `cryptomnesia.settings.MeasureCanariesSettings`. All other names are arguments of the pipeline's own call.

    Returns:
        The dose-response. Exposures are in bits.

    Raises:
        UsageError: for canaries that were not finished or are drawn in another way here, a reserve that is too small
            for the rate, or a model that cannot be asked about pictures.
        NotFiniteError: if the model's output on the reserve is not finite.

    Example:
        measured = measure_canaries("my-model", "my-pictures/canaries.json", checkpoint="base")
        measured.tolerated
    """
    known = {name: value for name, value in settings.items() if name in MeasureCanariesSettings.model_fields}
    call = {name: value for name, value in settings.items() if name not in known and value is not None}
    objects = {}
    for name, one in (("model", model), ("checkpoint", checkpoint)):
        (known if isinstance(one, str | Path) else objects)[name] = str(one) if isinstance(one, Path) else one
    given = MeasureCanariesSettings.resolve(known, environment={})
    if not isinstance(manifest, Manifest):
        manifest = Manifest.read(manifest)
    check(manifest, given.alpha)
    setup = setup_of(given, call, objects)
    check_call(setup)
    check_findable(setup)
    canaries, reserve = manifest.canaries, manifest.never_added()
    asking = _Asking(Measure(setup, given.seed), manifest)
    found = []
    for rows in _batches([*canaries, *reserve], given.batch_size):
        if progress is not None:
            progress("pictures", sum(map(len, found)), len(canaries) + len(reserve))
        found.append(asking.scores(rows))
    scores, null = np.split(np.concatenate(found), [len(canaries)])
    finite = null[np.isfinite(null)]
    if len(finite) < needed_null(given.alpha):
        raise NotFiniteError("the model's output on pictures is not finite; check the weights and the dtype")
    lost = int((~np.isfinite(scores)).sum() + len(null) - len(finite))
    scores[~np.isfinite(scores)] = np.nan
    exposures = exposed([one.caption for one in canaries], [one.repetitions for one in canaries], scores, finite)
    measured = DoseResponse(
        about={
            "model": given.model or type(setup.pipe).__name__,
            "weights": weights_digest(setup.pipe),
            "base": None if setup.checkpoint is None else weights_digest(setup.checkpoint),
            "fingerprint": {name: str(value) for name, value in setup.fingerprint.items()},
            "seed": given.seed,
            "layout": manifest.layout,
            "share": manifest.share,
            "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")},
        },
        doses=doses(exposures, scores, finite, given.alpha),
        reserve=len(finite),
        alpha=given.alpha,
        notes=[f"left out {lost} pictures on which the model's output is not finite"] if lost else [],
    )
    if output is not None:
        make(place(output))
        measured.save(place(output))
    return measured


def check(manifest: Manifest, alpha: float) -> None:
    """Refuse canaries that cannot be measured.

    Raises:
        UsageError: saying why.
    """
    if manifest.state == "unfinished":
        raise UsageError("the canaries were not finished; repeat `cryptomnesia canaries make`, and train afterwards")
    if manifest.reserve < (needed := needed_null(alpha)):
        raise UsageError(
            f"got a reserve of {manifest.reserve}, and a rate of {alpha:g} needs at least {needed}; give an alpha of "
            f"{rounded_up(1 / (manifest.reserve + 1))}"
        )
    for canary in manifest.canaries:
        if drawing.digest(canary.drawn(manifest.seed, manifest.size)) != canary.sha256:
            raise UsageError(
                f"canary {canary.number} is drawn in another way here than when it was added; measure with the "
                "versions of cryptomnesia, NumPy and Pillow that added it"
            )


@dataclass(frozen=True)
class _Asking:
    """Asks a model about pictures that a manifest draws."""

    measure: Measure
    manifest: Manifest

    def scores(self, rows: Sequence[Canary]) -> np.ndarray:
        """How well pictures are restored from noise, (B,) in nats; not finite where the model's output is not."""
        measure, setup = self.measure, self.measure.setup
        shown = np.stack([self._fitted(row.drawn(self.manifest.seed, self.manifest.size)) for row in rows])
        clean = measure.encoded(shown)
        captions = [row.caption for row in rows]
        inputs = measure.inputs(captions) if setup.family.conditional else measure.uncaptioned(len(rows))
        found = -self._log(measure.errors(clean, inputs))
        if setup.checkpoint is not None:
            of_base = measure.inputs(captions if setup.family.conditional else [""] * len(rows), of=setup.checkpoint)
            found += self._log(measure.errors(clean, of_base, denoiser=measure.base_denoiser()))
        return found

    def _fitted(self, shown: Image.Image) -> np.ndarray:
        """A picture at the size that the model makes, (H, W, 3) uint8."""
        height, width = self.measure.size
        return np.asarray(ImageOps.fit(shown, (width, height), Image.Resampling.LANCZOS))

    @staticmethod
    def _log(errors: torch.Tensor) -> np.ndarray:
        """The logarithm of errors (B, levels, h, w), in the mean over levels: (B,)."""
        # a perfect memory makes no error at all
        means = errors.double().mean(dim=(2, 3)).clamp_min(torch.finfo(torch.float32).tiny)
        return means.log().mean(dim=1).numpy()


def _batches(rows: Sequence[Canary], size: int) -> Iterator[Sequence[Canary]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
