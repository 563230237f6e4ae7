"""Solvers: the noise level of the step that a scheduler of diffusers is about to take, read from the scheduler itself.

A timestep is not enough. Solvers on Karras grids hand rounded timesteps to the network and compute with the exact σ,
and those of EDM count log(σ/α)/4. So every class of solver is known by name, with the place where its σ lies. A solver
of another class is refused, because its σ cannot be told.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Kind
from cryptomnesia.pipelines.schedule import Level, level_at, schedule_of

DISCRETE = frozenset(
    {
        "DDIMParallelScheduler",
        "DDIMScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "TCDScheduler",
    }
)
"""Solvers that compute with ᾱ at trained timesteps."""

EXPLODING = frozenset(
    {
        "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
    }
)
"""Solvers whose latents are x_0 + (σ/α)·ε; their `sigmas` are σ/α."""

PRESERVING = frozenset(
    {
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Solvers whose latents are α·x_0 + σ·ε; their `sigmas` are σ/α, or σ of a straight path."""

STRAIGHT = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"})
"""Solvers of rectified flow; their `sigmas` are σ."""

EDM = frozenset({"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"})
"""Solvers of models that are trained on a continuous σ; their `sigmas` are σ/α."""

KNOWN = DISCRETE | EXPLODING | PRESERVING | STRAIGHT | EDM
"""The solvers whose noise level is known."""


def solver_of(scheduler: Any) -> str:
    """The name in `KNOWN` of a scheduler's class, or of the class that it is derived from.

    Raises:
        UsageError: for a scheduler of another class.
    """
    if (name := _known_name(scheduler)) is not None:
        return name
    raise UsageError(
        f"got a {type(scheduler).__name__}, whose noise level at a step is not known; use one of "
        f"{', '.join(sorted(KNOWN))}"
    )


def _known_name(scheduler: Any) -> str | None:
    return _known_name_of(type(scheduler))


@cache
def _known_name_of(kind: type) -> str | None:
    kinds = (base for base in kind.__mro__ if base.__module__.startswith("diffusers."))
    return next((base.__name__ for base in kinds if base.__name__ in KNOWN), None)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler solves rectified flow."""
    name = _known_name(scheduler)
    # `from_config` leaves the setting in the configuration of solvers that do not know it
    return name in STRAIGHT or (name in PRESERVING and bool(scheduler.config.get("use_flow_sigmas")))


def is_continuous(scheduler: Any) -> bool:
    """Whether a scheduler's timesteps are log(σ/α)/4."""
    name = _known_name(scheduler)
    if name != "EulerDiscreteScheduler":
        return name in EDM
    config = getattr(scheduler, "config", {})
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def kind_of(scheduler: Any) -> Kind:
    """What the network behind a scheduler predicts."""
    return "flow_prediction" if is_flow(scheduler) else scheduler.config.prediction_type


def check_solver(scheduler: Any, *, flow: bool, distilled: bool = False) -> None:
    """Refuse a scheduler that is not known, or that cannot solve the model.

    Args:
        scheduler: the pipeline's.
        flow: whether the model is trained on rectified flow.
        distilled: whether the model is a latent consistency model, which only its own solver samples right.

    Raises:
        UsageError: saying what does not fit.
    """
    name = solver_of(scheduler)
    config = scheduler.config
    if is_flow(scheduler) != flow:
        trained = "is" if flow else "is not"
        more = "; set use_flow_sigmas and prediction_type='flow_prediction'" if flow and name in PRESERVING else ""
        raise UsageError(
            f"the model {trained} trained on rectified flow, which {name} does not solve{more}; keep the scheduler of "
            f"the model, or use {', '.join(sorted(STRAIGHT if flow else KNOWN - STRAIGHT - EDM))}"
        )
    if name in PRESERVING and is_flow(scheduler) != (config.get("prediction_type") == "flow_prediction"):
        raise UsageError(
            f"got a {name} with prediction_type={config.get('prediction_type')!r} and use_flow_sigmas="
            f"{bool(config.get('use_flow_sigmas'))}; set 'flow_prediction' and True for rectified flow, else neither"
        )
    # `from_config` keeps settings of the scheduler before it that the new one does not know
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    if name not in EDM and ("sigma_data" in config or (continuous and name != "EulerDiscreteScheduler")):
        raise UsageError(
            f"the model is trained on a continuous σ (EDM), which {name} does not solve; keep the model's own scheduler"
        )
    if name in EDM and (config.sigma_data != 1.0 or config.prediction_type != "v_prediction"):
        raise UsageError(
            f"got a {name} with sigma_data={config.sigma_data:g} and prediction_type={config.prediction_type!r}; known "
            "are EDM models with sigma_data=1 and 'v_prediction', as CosXL is"
        )
    if distilled and name not in ("LCMScheduler", "TCDScheduler"):
        raise UsageError(
            f"the model is a latent consistency model, which {name} does not solve; use LCMScheduler.from_config("
            "pipe.scheduler.config)"
        )


def level_of(scheduler: Any, t: Any) -> Level:
    """The noise level of the step at timestep `t` that a scheduler is about to take.

    Args:
        scheduler: one of `KNOWN`, between `set_timesteps` and the step.
        t: the timestep that the pipeline gives to `step`.

    Raises:
        UsageError: for a scheduler of another class.
    """
    name = solver_of(scheduler)
    if name in DISCRETE:
        return level_at(schedule_of(scheduler), t)
    return _level(scheduler, t, _sigma(scheduler, position(scheduler, t)))


def levels_of(scheduler: Any, timesteps: Iterable[float]) -> Mapping[float, Level]:
    """The noise levels of the steps at some timesteps as `level_of` gives them, as far as the timestep decides them.

    Raises:
        UsageError: for a scheduler of another class.
    """
    if solver_of(scheduler) not in DISCRETE:
        return {}
    schedule = schedule_of(scheduler)
    return {t: level_at(schedule, t) for t in timesteps}


def alpha_after(scheduler: Any, t: Any, following: float | None) -> float:
    """The factor of x_0 in the latents that the step at timestep `t` leads to.

    Args:
        scheduler: one of `KNOWN`, before it takes the step.
        t: the timestep of the step.
        following: the next timestep of the run, None at the last step.
    """
    name = solver_of(scheduler)
    if name in EXPLODING:
        return 1.0
    if name in DISCRETE:
        if name == "DDIMScheduler":
            # with spacing "linspace" DDIM goes to a timestep that is not exactly the next one of the run
            after = int(t) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
            bar = scheduler.alphas_cumprod[after] if after >= 0 else scheduler.final_alpha_cumprod
            return float(bar) ** 0.5
        if following is not None:
            return level_at(schedule_of(scheduler), following).alpha
        return float(getattr(scheduler, "final_alpha_cumprod", 1.0)) ** 0.5
    return _level(scheduler, t, float(scheduler.sigmas[position(scheduler, t) + 1])).alpha


def position(scheduler: Any, t: Any) -> int:
    """The number of the step at timestep `t` among all steps of a scheduler with `sigmas`."""
    # schedulers set their index at the first step, and this is asked before it
    for known in (scheduler.step_index, scheduler.begin_index):
        if known is not None:
            return known
    return int(scheduler.index_for_timestep(torch.as_tensor(t).to(scheduler.timesteps)))


def _sigma(scheduler: Any, index: int) -> float:
    """What the solver computes with as σ at step number `index`."""
    # two-part solvers take the second part of a step between two values of their grid
    if not getattr(scheduler, "state_in_first_order", True):
        name = solver_of(scheduler)
        if name == "KDPM2DiscreteScheduler":
            return float(scheduler.sigmas_interpol[index])
        if name == "KDPM2AncestralDiscreteScheduler":
            return float(scheduler.sigmas_interpol[index - 1])
        if name == "DPMSolverSDEScheduler":
            return float(scheduler.mid_point_sigma)
    return float(scheduler.sigmas[index])


def _level(scheduler: Any, t: Any, sigma: float) -> Level:
    if is_flow(scheduler):
        return Level(float(t), 1 - sigma, sigma)
    alpha = (1 + sigma**2) ** -0.5
    return Level(float(t), alpha, sigma * alpha)
