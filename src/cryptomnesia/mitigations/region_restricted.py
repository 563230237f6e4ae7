"""Correct where the map says memorized, and leave the rest of the picture as it was. A method of this library.

It joins the two papers that this library began with: a map of the run says where the picture is memorized
(arXiv:2605.26756), and a correction acts there alone (arXiv:2605.22050 and all other mitigations that make an image
again in one run). The run of the flagged image is repeated with all its latents kept, and mapped. Then the image is
made again under the correction. At every evaluation the latents outside the mask are set to those of the first run at
that evaluation, through the prediction that the solver is given, so that its history agrees.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers import Localizer
from cryptomnesia.localizers import localizer as localizer_of
from cryptomnesia.localizers.mapping import maps_of
from cryptomnesia.mitigations.base import Correction, Flagged, Prepared, Preparing, Studio
from cryptomnesia.pipelines.inputs import Inputs, unpacked
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.registry import create
from cryptomnesia.tracing.generation import Batch
from cryptomnesia.tracing.steering import SolverStep, check_steerable
from cryptomnesia.tracing.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class RegionRestricted(Preparing):
    """Which correction, and where.

    Attributes:
        mitigation: name or object of a mitigation that makes an image again in one run.
        localizer: name or object; its reference maps must be in the calibration.
        fpr: share of ordinary pixels that are inside the mask, in (0, 1).
    """

    mitigation: Any = "partial-captions"
    localizer: Any = "settled-detail"
    fpr: float = 0.05

    name = "region-restricted"  # type: ignore[override]
    summary = "Another mitigation, where the map says memorized; the rest of the picture stays as it was."
    source = "this library, joining arXiv:2605.22050 and arXiv:2605.26756"
    use_when = "A part of the picture is memorized, and the user wants to keep the rest."
    avoid_when = "The whole picture is memorized, or the map is not reliable on your model: what it misses stays."

    @property
    def inner(self) -> Any:
        """The mitigation that acts inside the mask.

        Raises:
            UsageError: for one that makes an image again in several runs.
        """
        made = create("mitigation", self.mitigation)
        if not hasattr(made, "prepare"):
            raise UsageError(f"{self.name} needs a mitigation that makes an image again in one run, not {made.name}")
        # what surrounds the mask stays as it was, and with it the noise
        return made.from_same_noise() if hasattr(made, "from_same_noise") else made

    def maps(self, setup: "Setup") -> list[Localizer]:
        """The localizer whose map is taken."""
        return [localizer_of(self.localizer, setup)]

    @property
    def alters(self) -> frozenset[str]:  # type: ignore[override]
        """What the mitigation alters."""
        return self.inner.alters

    def blinds(self, detector: "Detector") -> bool:
        """Whether the mitigation blinds the detector."""
        return self.inner.blinds(detector)

    @property
    def requires(self) -> frozenset[Requirement]:
        """What the mitigation requires."""
        return self.inner.requires

    def check(self, setup: "Setup") -> None:
        """Refuse what the mitigation or the localizer refuses, and a solver that cannot be steered.

        Raises:
            UsageError: saying why.
        """
        check_steerable(setup.pipe.scheduler)
        setup.check([self.inner, *self.maps(setup)])

    def cost(self, setup: "Setup") -> float:
        """What the mitigation and the map take, and one more run."""
        return setup.sampling.steps + self.inner.cost(setup) + sum(made.cost(setup) for made in self.maps(setup))

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Prepare the mitigation, and find the masks.

        Raises:
            UsageError: if the calibration has no reference maps of the localizer.
        """
        setup = studio.setup
        (localizer,) = self.maps(setup)
        reference = studio.calibration.map_reference(localizer)
        inner = self.inner.prepare(flagged, studio)
        run = studio.first([image.call for image in flagged], keep="all")
        prompts = [image.verdict.prompt or "" for image in flagged]
        batch = Batch(prompts, [image.call["generator"].initial_seed() for image in flagged], run.latents, run)
        masks = maps_of(setup, [localizer], batch)[localizer.name].values > reference.threshold(self.fpr)
        rows = [row for row in range(len(flagged)) if row not in inner.hopeless]
        if not rows:
            return inner
        notes = [f"{note or 'corrected'}, where the map is high" for note in inner.notes or [""] * len(flagged)]
        return inner._replace(correction=Restricted(inner.correction, run.rows(rows), masks[rows]), notes=notes)


class Restricted(Correction):
    """Applies a correction inside masks, and repeats an earlier run outside."""

    def __init__(self, inner: Correction | None, run: Trajectory, masks: Tensor) -> None:
        """Take what is needed.

        Args:
            inner: the correction; None where only the calls were changed.
            run: the earlier run, with the tensors of all evaluations.
            masks: true where the correction acts, (B, h, w) bool.
        """
        self._inner = Correction() if inner is None else inner
        last = len(run.steps) - 1
        self._after = [run.step(at + 1).sample if at < last else run.latents for at in range(last + 1)]
        first = run.step(0)
        self._masks = _like(masks, first.sample, first.cond_inputs)

    @property
    def changes_captions(self) -> bool:
        """Whether the correction does."""
        return self._inner.changes_captions

    def as_proposed(self, runs: Trajectory) -> Trajectory:
        """The runs as the correction gives them."""
        return self._inner.as_proposed(runs)

    def outcome(self, row: int) -> tuple[str, tuple[int, ...]]:
        """What the correction did."""
        return self._inner.outcome(row)

    def around(self, pipe: Any) -> AbstractContextManager[Any]:
        """What the correction enters."""
        return self._inner.around(pipe)

    def condition(self, index: int, inputs: Inputs) -> Inputs | None:
        """The conditioning that the correction wants."""
        return self._inner.condition(index, inputs)

    def steer(self, step: Step, solver: SolverStep) -> Tensor:
        """The prediction that lands on the corrected latents inside the masks, and on the earlier ones outside."""
        steered = self._inner.steer(step, solver)
        value = step.guided.value if steered is None else steered
        after = solver.after(value)
        wanted = torch.where(self._masks, after, self._after[step.index].to(after))
        return solver.landing(value, after, wanted)


def _like(masks: Tensor, sample: Tensor, inputs: Inputs) -> Tensor:
    """Masks (B, h, w) in the shape of a solver's latents, which may be packed."""
    order = unpacked(torch.arange(sample[0].numel()).reshape(1, *sample.shape[1:]), {**inputs})
    large = interpolate(masks[:, None].float(), size=order.shape[-2:], mode="nearest") > 0.5
    spread = large.expand(-1, order.shape[1], -1, -1).flatten(1)
    packed = torch.empty_like(spread)
    packed[:, order.flatten()] = spread
    return packed.reshape(sample.shape).to(sample.device)
