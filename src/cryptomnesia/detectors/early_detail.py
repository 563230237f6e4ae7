"""Early detail: a memorized caption has a sharp picture while there is nothing but noise. A method of this library.

At the noisy end of a run, the estimate x̂_0 is the mean of all pictures that the caption may stand for. The mean of many
pictures is blurred. A memorized caption stands for one picture, or for some that share a part, and so its estimate has
fine detail from the first evaluation on. A caption that fixes a plain ground has a sharp estimate too, but a plain
picture has little detail. Webster (arXiv:2305.08694) showed that memorized captions give pictures in one step; he looks
for edges that several seeds share.

With d_t = mean of log(1 + |∇x̂_0|/0.01) over neighbouring latents at evaluation t, and the mean μ_t and the standard
deviation σ_t of log d_t over reference runs, the score is the mean of (log d_t − μ_t)/σ_t over the first fifth of the
run. The share was chosen on the grounds `scenes` and `drawings`, where shares from the first evaluation alone to three
tenths do about as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector, Moments, check_evaluations, counted
from cryptomnesia.detectors.combined import LEAST_SPREAD, logarithm
from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families import pictures_of
from cryptomnesia.pipelines.setup import Requirement, Setup
from cryptomnesia.tracing.trajectory import Trajectory

FEW_STEPS = frozenset({"LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"})
"""Solvers for models that make a picture in one step already; the further steps mend it."""


@dataclass(frozen=True)
class EarlyDetail(Detector):
    """Mean z-score of the log detail of x̂_0 over the first evaluations, in standard deviations of reference runs.

    Attributes:
        share: of the run that counts, above 0 and up to 1; at least one evaluation does.
    """

    share: float = 0.2

    name = "early-detail"
    summary = "How much detail the estimate of the picture has early in the run, when its input is still mostly noise."
    source = "this library, after arXiv:2305.08694"
    use_when = (
        "The pictures are made from captions alone. It is known from the first step on, and needs no unconditional "
        "branch."
    )
    avoid_when = (
        "The model makes pictures in a few steps (Turbo, Schnell): then the first estimate is sharp under every "
        "caption. The model was fine-tuned on few pictures: there it catches few; use `base-difference`. It was "
        "measured on small models that predict v or a flow; compare it with `combined` on yours."
    )
    reads = frozenset({"detail"})

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            UsageError: if it is not above 0, or above 1.
        """
        counted(self.share, 1)

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions: without them, all pictures of the model have the same mean."""
        return frozenset({"captions"})

    def check(self, setup: Setup) -> None:
        """Refuse set-ups whose first estimates have detail under every caption.

        Raises:
            UsageError: naming the argument that is a picture or lets the run begin from one, or a solver for models
                that make pictures in a few steps.
        """
        options = {name for name, value in setup.sampling.options.items() if value is not None}
        named = {name for name in options if "image" in name or name == "denoising_start"}
        given = sorted(named | (options & pictures_of(setup.pipe)))
        if given:
            raise UsageError(
                f"{self.name} needs runs that begin from noise and a caption alone, and this call is given "
                f"{', '.join(given)}; use `combined`, or `stability-or-drift` without guidance"
            )
        if (solver := type(setup.pipe.scheduler).__name__) in FEW_STEPS:
            raise UsageError(
                f"{self.name} needs a model whose first estimate is blurred, and a {solver} is for models that make "
                "pictures in a few steps; use `combined`, or `stability-or-drift` without guidance"
            )

    def settled(self, evaluations: int) -> int:
        """The number of evaluations that count."""
        return counted(self.share, evaluations)

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The mean z-score over the evaluations so far that count, (B, N)."""
        check_evaluations(runs, references)
        usual = Moments.of(logarithm(references.norms["detail"]), LEAST_SPREAD)
        scores = usual.z_scores(logarithm(runs.norms["detail"]))
        last = counted(self.share, len(runs.timesteps))
        scores[:, last:] = 0
        number = torch.arange(1, scores.shape[1] + 1).clamp_max(last)
        return (scores.cumsum(dim=1) / number).float()
