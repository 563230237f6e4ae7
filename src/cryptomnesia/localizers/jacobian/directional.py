"""The derivative of a network along one direction, J·v."""

from contextlib import nullcontext

import torch
from torch import Tensor

from cryptomnesia.localizers.jacobian.process import eagerly, whole_floats
from cryptomnesia.localizers.jacobian.products import Function, Jacobian


def along(
    function: Function, x: Tensor, direction: Tensor, *, scale: float, value: Tensor | None = None, step: float = 0.1
) -> Tensor:
    """J·v at every image for one direction v of each, shaped like f(x).

    It is a finite difference, one evaluation of f (two if `value` is not given), in single precision or better. In half
    precision, where a difference would be mostly rounding, it is computed in forward mode.

    Args:
        function: f; see `Function`.
        x: the images, (B, …).
        direction: the directions v, shaped like x, of any length; where v is 0 the result is 0.
        scale: length over which f is nearly linear, for a noisy image its σ.
        value: f(x) if it is known.
        step: length of the finite difference, as root mean square over the entries, in units of `scale`.
    """
    half = x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x.device.type)
    rows = torch.arange(len(x))
    # the step has the same length for all images, whatever the length of v is
    direction = direction.to(torch.promote_types(direction.dtype, torch.float32))
    length = torch.linalg.vector_norm(direction.flatten(1), dim=1) / direction[0].numel() ** 0.5
    unit = direction / _beside(length, direction).clamp_min(torch.finfo(direction.dtype).tiny)
    with whole_floats() as rounded, eagerly() if half else nullcontext():
        if not half and (value is None or (rounded and x.is_cuda)):
            value = function(x, rows)
        jacobian = Jacobian(function, x, x if value is None else value, "forward" if half else "finite", step * scale)
        product = jacobian.pushed(rows, unit.to(x))
    return product * _beside(length, product).to(product)


def _beside(numbers: Tensor, values: Tensor) -> Tensor:
    """One number per image (B,), shaped so that it multiplies values (B, …)."""
    return numbers.view(-1, *[1] * (values.dim() - 1))
