"""Score differences Δs (arXiv:2605.26756): a substitute for the curvature difference that needs no derivative.

Δs = Σ_channels (s_c − s̃)² with s = −ε/σ, where s̃ is that of the unconditional branch (Δs_∅) or of a less-trained
checkpoint (Δs_θ̃). By the Fisher identity Δs approaches the curvature difference as t → 0, so it is taken at the last
step. The baseline must not have memorized the picture, as for the curvature difference. Single places of Δs are noisy;
the paper averages over 13 × 13 places of the 64 × 64 of Stable Diffusion (`score-difference-filtered`). The guidance
map is the distance ‖ε_c − ε̃‖ over channels, without the division by σ and the square.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import avg_pool2d

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import Localizer, Map, Watched, finite, named, over_channels, wide
from cryptomnesia.localizers.baseline import Against
from cryptomnesia.tracing.trajectory import Place, Step

OBSERVED = "guidance at the last evaluation"
"""What Δs, the guidance map and the detector `guidance-last` observe."""

PUBLISHED_WINDOW = 13 / 64
"""Side of the published filter, as a share of the side of the map."""


@dataclass(frozen=True)
class ScoreDifference(Localizer):
    """Δs at evaluation `step`, in 1/(latent unit)².

    Attributes:
        step: the evaluation at which the scores are compared.
        baseline: whose score is subtracted: `unconditional`, `empty` or `checkpoint`.
        window: side of the square over which the map is averaged around every place, as a share of the map's shorter
            side, in [0, 1]. It is rounded to the next odd number of places, and 0 leaves the map as it is. At the
            border the mean is over the part of the square that lies inside the map.
    """

    step: Place = -1
    baseline: Against = "unconditional"
    window: float = 0.0

    summary = "The squared difference of the scores with and without the caption, at every place."
    source = "arXiv:2605.26756"
    use_when = "You want a map that costs nothing beyond the generation."
    avoid_when = (
        "You need a mask: a ground that an ordinary caption names moves the prediction as far as a memorized one. Use "
        "`settled-detail`."
    )

    def __post_init__(self) -> None:
        """Refuse a window that is no share."""
        if not 0 <= self.window <= 1:
            raise UsageError(f"got the window {self.window:g}; give a share of the map's side in [0, 1]")

    @property
    def name(self) -> str:
        """`score-difference`, `-filtered` with a window, and the baseline unless that is the unconditional branch."""
        return named("score-difference-filtered" if self.window else "score-difference", self.baseline)

    @property
    def observes(self) -> str:
        """The distance between the predictions of the two branches."""
        return OBSERVED

    def describe(self) -> str:
        """The settings; a window of 0 is left out, as by versions that had none, so that their calibrations fit."""
        return super().describe().replace(", window=0.0", "")

    def map(self, watched: Watched) -> Map:
        """Δs of every image, (B, h, w), ≥ 0."""
        step = watched.trajectory.step(self.step)
        found = over_channels((_difference(watched, step) / step.cond.sigma) ** 2, step.cond_inputs)
        return Map(averaged(found, self.window))


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


def averaged(maps: Tensor, window: float) -> Tensor:
    """Maps (B, h, w), averaged over the square of `ScoreDifference.window` around every place, (B, h, w)."""
    reach = round((window * min(maps.shape[1:]) - 1) / 2)
    if reach < 1:
        return maps
    return avg_pool2d(maps.unsqueeze(1), 2 * reach + 1, 1, reach, count_include_pad=False).squeeze(1)


def _difference(watched: Watched, step: Step) -> Tensor:
    """ε_c − ε̃ at a step, shaped like the latents, in single precision or better."""
    return finite(wide(step.cond.epsilon - watched.against(step).epsilon(step.cond.x, step.level)))


def score_difference_empty() -> ScoreDifference:
    """Make `score-difference-empty`, which compares with an empty caption."""
    return ScoreDifference(baseline="empty")


def score_difference_checkpoint() -> ScoreDifference:
    """Make `score-difference-checkpoint`, which compares with a less-trained checkpoint."""
    return ScoreDifference(baseline="checkpoint")


def score_difference_filtered() -> ScoreDifference:
    """Make `score-difference-filtered`, with the published filter."""
    return ScoreDifference(window=PUBLISHED_WINDOW)


def guidance_map_empty() -> GuidanceMap:
    """Make `guidance-map-empty`, which compares with an empty caption."""
    return GuidanceMap(baseline="empty")


def guidance_map_checkpoint() -> GuidanceMap:
    """Make `guidance-map-checkpoint`, which compares with a less-trained checkpoint."""
    return GuidanceMap(baseline="checkpoint")
