"""Where a solver would land with a prediction, and which prediction makes it land elsewhere.

Whatever a scheduler computes in `step`, the latents that it returns are affine in the prediction
it is given, z′ = a + b·value: the scalar b belongs to solver and step, and sample, history and noise are in a.
Two dry runs therefore tell b, and with it the prediction that lands on any wanted latents, without
a line of any solver repeated here. The step that is then taken leaves the solver's history
agreeing with its latents. Latents edited behind its back would not: PNDM goes back to a copy
of its own, Heun ignores every other edit, UniPC and DPM-Solver++ distort it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError

VARIANCE_EXPLODING = frozenset(
    {
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
    }
)
"""Steerable solvers whose latents are x_0 + (σ/α)·ε rather than α·x_0 + σ·ε."""

STEERABLE = VARIANCE_EXPLODING | {
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}
"""Solvers that are tested to land where they are steered."""

Step = Callable[..., Any]


class SolverStep:
    """A step that a solver is about to take, and that may be tried first.

    Attributes:
        alpha_after: the factor of x_0 in the latents after the step.
    """

    def __init__(self, scheduler: Any, arguments: tuple[Any, ...], named: dict[str, Any], alpha_after: float) -> None:
        """`arguments` and `named` are those of the scheduler's `step` behind the prediction."""
        self.alpha_after = alpha_after
        self._scheduler = scheduler
        self._arguments = arguments
        self._named = named

    def after(self, value: Tensor) -> Tensor:
        """The latents (B, C, h, w) that the prediction `value` (B, C, h, w) would lead to; nothing is changed."""
        state = {name: _copied(held) for name, held in vars(self._scheduler).items()}
        generators = self._generators()
        noise = [generator.get_state() for generator in generators]
        try:
            return _unwatched(self._scheduler.step)(value, *self._arguments, **self._named)[0]
        finally:
            vars(self._scheduler).clear()
            vars(self._scheduler).update(state)
            for generator, before in zip(generators, noise, strict=True):
                generator.set_state(before)

    def landing(self, value: Tensor, after: Tensor, wanted: Tensor) -> Tensor:
        """The prediction that lands on `wanted`.

        Images whose latents are not finite keep theirs, and so do all where the step does not depend on its
        prediction (the last one of DDIM with `timestep_spacing="linspace"`): nothing can be steered there.

        Args:
            value: some prediction, (B, C, h, w).
            after: where it leads, (B, C, h, w).
            wanted: latents, (B, C, h, w).

        Raises:
            UsageError: if the step does not depend on its prediction in an affine way.
        """
        sound = torch.isfinite(after).flatten(1).all(dim=1) & torch.isfinite(wanted).flatten(1).all(dim=1)
        if not sound.any():
            return value
        slopes = (_wide(self.after(value + 1)) - _wide(after))[sound.cpu()]
        slope = slopes.mean()
        # rounding is relative to the latents, which may be large beside the slope
        rounding = torch.finfo(after.dtype).eps * after[sound].abs().max().cpu()
        if not (slopes - slope).abs().max() <= 1e-3 * slope.abs() + 8 * rounding:
            raise UsageError(
                f"{type(self._scheduler).__name__} does not depend on its prediction in an affine way; "
                "switch thresholding and clipping off, or use another scheduler"
            )
        # a mean of nothing but rounding errors
        if slope.abs() <= 4 * rounding / slopes.numel() ** 0.5:
            return value
        steered = (_wide(value) + (_wide(wanted) - _wide(after)) / slope).to(value)
        return torch.where(sound.view(-1, *([1] * (value.dim() - 1))), steered, value)

    def _generators(self) -> list[torch.Generator]:
        """Those that the step may draw noise from."""
        given = self._named.get("generator")
        if given is not None:
            return list(given) if isinstance(given, list) else [given]
        device = self._arguments[1].device
        cuda = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
        return [torch.default_generator, *cuda]


def check_steerable(scheduler: Any) -> None:
    """See that a scheduler is one that can be made to land where it is wanted.

    Raises:
        UsageError: for an unknown one, or one that clips x̂_0.
    """
    name = type(scheduler).__name__
    if name not in STEERABLE:
        raise UsageError(f"cannot steer a {name}; known are {', '.join(sorted(STEERABLE))}")
    for option in ("clip_sample", "thresholding"):
        if scheduler.config.get(option):
            raise UsageError(f"cannot steer a {name} with {option}=True, which also ruins latents; set it to False")


def _wide(values: Tensor) -> Tensor:
    """In double precision, on the CPU, since not every device has that."""
    return values.cpu().double()


def _copied(held: Any) -> Any:
    """Solvers keep their history in lists that they change in place; the tensors in them stay as they are."""
    return list(held) if isinstance(held, list) else held


def _unwatched(step: Step) -> Step:
    """The scheduler's own method behind the wrappers of `watch`."""
    while (inner := getattr(step, "unwatched", None)) is not None:
        step = inner
    return step
