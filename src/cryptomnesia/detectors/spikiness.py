"""Spikiness of the representation (arXiv:2512.20963): the features of a memorized picture are few and strong.

The score is the standard deviation of the features in the middle of the network over that picture's features, at an
evaluation of little noise (t ≈ 50 of 1,000). The middle is the UNet's middle block, or the middle one of a
transformer's blocks.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import wide
from cryptomnesia.localizers.jacobian.process import eagerly
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory


@dataclass(frozen=True)
class Spikiness(Measured):
    """Standard deviation of the features in the middle of the network at evaluation `step`, ≥ 0, in their unit.

    Attributes:
        step: the evaluation.
    """

    step: Place = 0.95

    name = "spikiness"
    summary = "How uneven the features in the middle of the network are, near the end of the run."
    source = "arXiv:2512.20963"
    use_when = "The runs have no unconditional branch, and you can afford one evaluation."
    avoid_when = "You have not tried it on your model: what its features look like has other reasons as well."

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluation `step`."""
        return (self.step,)

    def check(self, setup: Setup) -> None:
        """Refuse a network whose middle is not known.

        Raises:
            UsageError: naming the network.
        """
        super().check(setup)
        middle_of(setup.family.module)

    def cost(self, setup: Setup) -> float:
        """One evaluation of the conditional branch, half of one of both."""
        return 0.5 if setup.guided else 1.0

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        step = run.step(self.step)
        seen: list[Any] = []
        hook = middle_of(getattr(denoiser, "module", None)).register_forward_hook(
            lambda _module, _args, output: seen.append(output)
        )
        try:
            # compiled code would not call the hook
            with eagerly():
                denoiser(step.cond.x, step.level, step.cond_inputs)
        finally:
            hook.remove()
        features: Tensor = seen[-1][-1] if isinstance(seen[-1], tuple) else seen[-1]
        return wide(features).flatten(1).std(dim=1)


def middle_of(network: Any) -> nn.Module:
    """The block in the middle of a network.

    Raises:
        UsageError: for a network that has none.
    """
    if isinstance(found := getattr(network, "mid_block", None), nn.Module):
        return found
    blocks = getattr(network, "transformer_blocks", None)
    if isinstance(blocks, nn.ModuleList) and len(blocks):
        return blocks[len(blocks) // 2]
    raise UsageError(f"the middle of a {type(network).__name__} is not known; use a detector that needs none")
