"""Steering: find the prediction that makes a solver step land on the latents that are wanted.

Whatever a scheduler computes in `step`, the latents that it returns are affine in the prediction that it is given,
z′ = a + b·value. The scalar b depends on the solver and the step; a depends on the sample, the history and the noise.
Two trial steps therefore give b, and b gives the prediction that leads to any wanted latents. No solver has to be
implemented again for that.

The step that is then taken leaves the solver's history in agreement with its latents. Latents that are edited after a
step would not agree with it: PNDM continues from a copy that it keeps, Heun ignores every second edit, and UniPC and
DPM-Solver++ distort the edits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.solvers import EXPLODING

STEERABLE = frozenset(EXPLODING - {"DPMSolverSDEScheduler"}) | {
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}
"""Class names of the solvers for which tests show that they land where they are steered."""

Step = Callable[..., Any]


class SolverStep:
    """The step that a solver is about to take. It can be tried with several predictions before it is taken.

    Attributes:
        alpha_after: the factor of x_0 in the latents after the step.
    """

    def __init__(
        self,
        scheduler: Any,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        alpha_after: float,
        beside: Tensor | None = None,
    ) -> None:
        """Store what a trial of the step needs.

        Args:
            scheduler: the solver.
            arguments: positional arguments of its `step` after the prediction: timestep, sample, and possibly more.
            named: keyword arguments of its `step`.
            alpha_after: the factor of x_0 in the latents after the step.
            beside: what the solver is given behind the prediction in further channels, a variance for instance.
        """
        self._beside = beside
        self.alpha_after = alpha_after
        self._scheduler = scheduler
        self._arguments = arguments
        self._named = named

    def after(self, value: Tensor) -> Tensor:
        """The latents (B, C, h, w) that the prediction `value` (B, C, h, w) would lead to.

        The step is only tried: the solver's history and the random generators are put back afterwards.
        """
        attributes = {name: _copied(attribute) for name, attribute in vars(self._scheduler).items()}
        generators = self._generators()
        states = [generator.get_state() for generator in generators]
        try:
            if self._beside is not None and self._beside.shape[1]:
                value = torch.cat([value, self._beside.to(value)], dim=1)
            return _unwatched(self._scheduler.step)(value, *self._arguments, **self._named)[0]
        finally:
            vars(self._scheduler).clear()
            vars(self._scheduler).update(attributes)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def landing(self, value: Tensor, after: Tensor, wanted: Tensor) -> Tensor:
        """The prediction that makes the step land on `wanted`, (B, C, h, w).

        An image whose latents are not finite keeps its prediction. All images keep theirs if the step does not depend
        on the prediction, as the last step of DDIM with `timestep_spacing="linspace"`: it cannot be steered.

        Args:
            value: any prediction, (B, C, h, w).
            after: the latents that `value` leads to, (B, C, h, w).
            wanted: the latents to land on, (B, C, h, w).

        Raises:
            UsageError: if the latents after the step are not affine in the prediction.
        """
        sound = torch.isfinite(after).flatten(1).all(dim=1) & torch.isfinite(wanted).flatten(1).all(dim=1)
        if not sound.any():
            return value
        slopes = (_wide(self.after(value + 1)) - _wide(after))[sound.cpu()]
        slope = slopes.mean()
        # rounding errors are relative to the latents, which can be much larger than the slope
        rounding = torch.finfo(after.dtype).eps * after[sound].abs().max().cpu()
        if not (slopes - slope).abs().max() <= 1e-3 * slope.abs() + 8 * rounding:
            raise UsageError(
                f"{type(self._scheduler).__name__} does not depend on its prediction in an affine way; "
                "switch thresholding and clipping off, or use another scheduler"
            )
        # the mean consists of rounding errors alone: the step does not depend on its prediction
        if slope.abs() <= 4 * rounding / slopes.numel() ** 0.5:
            return value
        steered = (_wide(value) + (_wide(wanted) - _wide(after)) / slope).to(value)
        return torch.where(sound.view(-1, *([1] * (value.dim() - 1))), steered, value)

    def _generators(self) -> list[torch.Generator]:
        """The generators that the step may draw noise from: those that it is given, else the global ones."""
        for argument in (*self._arguments, *self._named.values()):
            if isinstance(argument, torch.Generator):
                return [argument]
            if isinstance(argument, list) and argument and isinstance(argument[0], torch.Generator):
                return list(argument)
        device = self._arguments[1].device
        cuda = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
        return [torch.default_generator, *cuda]


def check_steerable(scheduler: Any) -> None:
    """Refuse a scheduler that cannot be steered.

    Raises:
        UsageError: for a scheduler that is not in `STEERABLE`, or one that clips x̂_0.
    """
    name = type(scheduler).__name__
    if name not in STEERABLE:
        raise UsageError(f"cannot steer a {name}; known are {', '.join(sorted(STEERABLE))}")
    if name == "DEISMultistepScheduler" and scheduler.config.get("use_flow_sigmas"):
        # its last steps miss the wanted latents
        raise UsageError(f"cannot steer a {name} on rectified flow; use FlowMatchEulerDiscreteScheduler")
    for option in ("clip_sample", "thresholding"):
        if scheduler.config.get(option):
            raise UsageError(f"cannot steer a {name} with {option}=True, which also ruins latents; set it to False")


def _wide(values: Tensor) -> Tensor:
    """`values` in double precision, on the CPU because some devices have no double precision."""
    return values.cpu().double()


def _copied(attribute: Any) -> Any:
    """A copy of an attribute of a solver that a trial step leaves unchanged.

    Solvers keep their history in lists that they change in place. They do not change the tensors in these lists.
    """
    return list(attribute) if isinstance(attribute, list) else attribute


def _unwatched(step: Step) -> Step:
    """The method that a wrapper of `watch` calls in the end; `step` itself if `watch` did not wrap it."""
    # functools.wraps copies attributes, so another function may carry the attribute of the wrapper that it wraps
    while (wrapping := getattr(step, "wrapping", None)) is not None and wrapping.wrappers["step"] is step:
        step = wrapping.inner["step"]
    return step
