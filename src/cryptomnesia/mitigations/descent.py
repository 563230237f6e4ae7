"""Gradient descent on what one evaluation is given, until the caption pulls no harder than it usually does."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.inputs import cloned
from cryptomnesia.tracing.trajectory import Step, Trajectory

Tensors = Mapping[Any, Tensor]


def recorded(step: Step) -> Step:
    """A recorded evaluation whose tensors can take part in gradients, also if it was recorded in inference mode."""
    with torch.inference_mode(False):
        cond = replace(step.cond, x=step.cond.x.clone(), value=step.cond.value.clone())
        uncond = None if step.uncond is None else replace(step.uncond, x=cond.x, value=step.uncond.value.clone())
        return replace(
            step,
            cond=cond,
            uncond=uncond,
            cond_inputs=cloned(step.cond_inputs),
            uncond_inputs=None if step.uncond_inputs is None else cloned(step.uncond_inputs),
        )


def check_descent(method: Any) -> None:
    """Refuse settings with which nothing is moved.

    Raises:
        UsageError: for fewer than one step, or a rate that is not above 0.
    """
    if method.most < 1 or not method.rate > 0:
        raise UsageError(
            f"got most={method.most} and rate={method.rate} for {method.name}; give at least 1 step, and a rate above 0"
        )


def usual_pull(references: Trajectory) -> float:
    """The median over reference runs of the distance between the two branches at the first evaluation."""
    return references.norms["guidance"][:, 0].nanmedian().item()


def descended(
    given: Tensors,
    objective: Callable[[dict[Any, Tensor]], tuple[Tensor, Tensor]],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    *,
    target: float,
    most: int,
    mask: Callable[[Any, Tensor], Tensor] = lambda _, gradient: gradient,
) -> dict[Any, Tensor]:
    """Tensors that lower an objective, step by step until its measure is at most `target`.

    Args:
        given: the tensors to begin with, of one image.
        objective: the tensors → what is lowered and what is compared with the target, one number each.
        optimizer: makes the optimizer.
        target: the measure at which the descent ends.
        most: steps at most.
        mask: name and gradient of a tensor → the gradient that is followed.
    """
    # a caller may be in inference mode, whose tensors have no gradients
    with torch.inference_mode(False), torch.enable_grad():
        kinds = {name: tensor.dtype for name, tensor in given.items()}
        # the squares of small gradients underflow in half precision
        wide = {name: tensor.detach().float().clone().requires_grad_() for name, tensor in given.items()}
        moving = optimizer(list(wide.values()))
        for _ in range(most):
            loss, measure = objective({name: tensor.to(kinds[name]) for name, tensor in wide.items()})
            if measure.item() <= target:
                break
            gradients = torch.autograd.grad(loss, list(wide.values()))
            for (name, tensor), gradient in zip(wide.items(), gradients, strict=True):
                tensor.grad = mask(name, gradient)
            moving.step()
    return {name: tensor.detach().to(kinds[name]) for name, tensor in wide.items()}
