"""Spikiness of the representation (arXiv:2512.20963): the features of a memorized picture are few and strong.

The score is the standard deviation of the features in the middle of the network over that picture's features, at an
evaluation of little noise (t ≈ 50 of 1,000). They are what the middle block of a UNet gives, or what the middle one of
a transformer's blocks is given for the picture.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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
        """The evaluation `step`, at which the score is measured."""
        return (self.step,)

    def check(self, setup: Setup) -> None:
        """Refuse a network whose middle is not known.

        Raises:
            UsageError: naming the network.
        """
        super().check(setup)
        look_into(setup.family.module, []).remove()

    def cost(self, setup: Setup) -> float:
        """One evaluation of the conditional branch, half of one of both."""
        return 0.5 if setup.guided else 1.0

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        step = run.step(self.step)
        seen: list[Tensor] = []
        hook = look_into(getattr(denoiser, "module", None), seen)
        try:
            # compiled code would not call the hook
            with eagerly():
                denoiser(step.cond.x, step.level, step.cond_inputs)
        finally:
            hook.remove()
        return wide(seen[-1]).flatten(1).std(dim=1)


def look_into(network: Any, seen: list[Any]) -> RemovableHandle:
    """Append the features in the middle of a network to `seen` at every evaluation, until the handle is removed.

    Raises:
        UsageError: for a network whose middle is not known.
    """
    if isinstance(middle := getattr(network, "mid_block", None), nn.Module):
        return middle.register_forward_hook(lambda _module, _args, output: seen.append(output))
    blocks = getattr(network, "transformer_blocks", None)
    if isinstance(blocks, nn.ModuleList) and len(blocks):
        # a block returns features of the picture and of the caption, in an order of its own
        return blocks[len(blocks) // 2].register_forward_pre_hook(
            lambda _module, args, given: seen.append(given["hidden_states"] if "hidden_states" in given else args[0]),
            with_kwargs=True,
        )
    raise UsageError(f"the middle of a {type(network).__name__} is not known; use a detector that needs none")
