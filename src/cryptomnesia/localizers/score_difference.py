"""Score differences Δs (arXiv:2605.26756): a substitute for the curvature difference that needs no derivative.

Δs = Σ_channels (s_c − s̃)² with s = −ε/σ, where s̃ is that of the unconditional branch (Δs_∅) or of a less-trained
checkpoint (Δs_θ̃). By the Fisher identity Δs approaches the curvature difference as t → 0, so it is taken at the last
step. The baseline must not have memorized the picture, as for the curvature difference. The guidance map is the
distance ‖ε_c − ε̃‖ over channels, without the division by σ and the square.
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.localizers.base import Localizer, Map, Watched, finite, named, over_channels, wide
from cryptomnesia.localizers.baseline import Against
from cryptomnesia.tracing.trajectory import Place, Step

OBSERVED = "guidance at the last evaluation"
"""What Δs, the guidance map and the detector `guidance-last` observe."""


@dataclass(frozen=True)
class ScoreDifference(Localizer):
    """Δs at evaluation `step`, in 1/(latent unit)².

    Attributes:
        step: the evaluation at which the scores are compared.
        baseline: whose score is subtracted: `unconditional`, `empty` or `checkpoint`.
    """

    step: Place = -1
    baseline: Against = "unconditional"

    summary = "The squared difference of the scores with and without the caption, at every place."
    source = "arXiv:2605.26756"
    use_when = "You want a map that costs nothing beyond the generation."
    avoid_when = (
        "You need a mask: a ground that an ordinary caption names moves the prediction as far as a memorized one. Use "
        "`settled-detail`."
    )

    @property
    def name(self) -> str:
        """`score-difference`, followed by the baseline unless that is the unconditional branch."""
        return named("score-difference", self.baseline)

    @property
    def observes(self) -> str:
        """The distance between the predictions of the two branches."""
        return OBSERVED

    def map(self, watched: Watched) -> Map:
        """Δs of every image, (B, h, w), ≥ 0."""
        step = watched.trajectory.step(self.step)
        return Map(over_channels((_difference(watched, step) / step.cond.sigma) ** 2, step.cond_inputs))


@dataclass(frozen=True)
class GuidanceMap(Localizer):
    """‖ε_c − ε̃‖ over channels at evaluation `step`, in latent units: the guidance magnitude at every place.

    Attributes:
        step: the evaluation at which the predictions are compared.
        baseline: whose prediction is subtracted: `unconditional`, `empty` or `checkpoint`.
    """

    step: Place = -1
    baseline: Against = "unconditional"

    summary = "The distance between the predictions with and without the caption, at every place."
    source = "arXiv:2407.21720"
    use_when = "You want to see where a caption acts, at no cost."
    avoid_when = "You need a mask of what is memorized; use `settled-detail`."

    @property
    def name(self) -> str:
        """`guidance-map`, followed by the baseline unless that is the unconditional branch."""
        return named("guidance-map", self.baseline)

    @property
    def observes(self) -> str:
        """The distance between the predictions of the two branches."""
        return OBSERVED

    def map(self, watched: Watched) -> Map:
        """The distance at every place of every image, (B, h, w), ≥ 0."""
        step = watched.trajectory.step(self.step)
        return Map(over_channels(_difference(watched, step) ** 2, step.cond_inputs).sqrt())


def _difference(watched: Watched, step: Step) -> Tensor:
    """ε_c − ε̃ at a step, shaped like the latents, in single precision or better."""
    return finite(wide(step.cond.epsilon - watched.against(step).epsilon(step.cond.x, step.level)))


def score_difference_empty() -> ScoreDifference:
    """Make `score-difference-empty`, which compares with an empty caption."""
    return ScoreDifference(baseline="empty")


def score_difference_checkpoint() -> ScoreDifference:
    """Make `score-difference-checkpoint`, which compares with a less-trained checkpoint."""
    return ScoreDifference(baseline="checkpoint")


def guidance_map_empty() -> GuidanceMap:
    """Make `guidance-map-empty`, which compares with an empty caption."""
    return GuidanceMap(baseline="empty")


def guidance_map_checkpoint() -> GuidanceMap:
    """Make `guidance-map-checkpoint`, which compares with a less-trained checkpoint."""
    return GuidanceMap(baseline="checkpoint")
