"""Gradient descent on what one evaluation is given, until the caption pulls no harder than it usually does."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.tracing.trajectory import Trajectory

Tensors = Mapping[Any, Tensor]


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
    """The median of that distance at the first evaluation of reference runs."""
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
        tensors = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
        moving = optimizer(list(tensors.values()))
        for _ in range(most):
            loss, measure = objective(tensors)
            if measure.item() <= target:
                break
            gradients = torch.autograd.grad(loss, list(tensors.values()))
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
                tensor.grad = mask(name, gradient)
            moving.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}
