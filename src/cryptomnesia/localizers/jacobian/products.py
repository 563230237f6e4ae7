"""Products with the Jacobian of a network, computed in one of three ways.

- Finite differences need no graph and no automatic differentiation: one evaluation for every probe, and any number of
  probes in one batch. In half precision the result would be mostly rounding.
- Reverse mode computes vᵀJ, of which the average over probes gives the same diagonal as J·v. It works in any precision
  and keeps a graph, but none for the weights.
- Forward mode computes J·v. It needs the plain attention kernel and switches to it.

Only finite differences work with compiled code, which supports no tangents and frees its graph at the first product.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import CheckpointError

from cryptomnesia.errors import UsageError

Function = Callable[[Tensor, Tensor], Tensor]
"""f(x, rows): the values (n, …) at points x (n, …), where point i belongs to image rows[i]. The value at a point
depends on no other point."""


@dataclass(frozen=True)
class Jacobian:
    """The Jacobian of a function at images, known by its products.

    Attributes:
        function: f; see `Function`.
        x: the images, (B, …).
        value: f(x), shaped like x; finite differences only.
        engine: `reverse`, `forward` or `finite`.
        step: length of the finite difference.
    """

    function: Function
    x: Tensor
    value: Tensor
    engine: str
    step: float

    def products(self, images: Tensor, probes: Tensor, *, points: int) -> Tensor:
        """The products v ⊙ (J·v), or v ⊙ (Jᵀ·v) in reverse mode, for k probes of each of n images.

        Args:
            images: numbers of the images, (n,).
            probes: the probes v, (n, k, …).
            points: how many points are evaluated at once; in reverse mode all n images are.

        Returns:
            The products, shaped like the probes.
        """
        probes = probes.to(self.x)
        if self.engine == "reverse":
            return probes * self._pulled(images, probes)
        rows, along = images.repeat_interleave(probes.shape[1]), probes.flatten(0, 1)
        found = torch.empty_like(along)
        for start in range(0, len(along), points):
            part = slice(start, start + points)
            found[part] = along[part] * self.pushed(rows[part], along[part])
        return found.view_as(probes)

    def pushed(self, rows: Tensor, along: Tensor) -> Tensor:
        """J·v for one direction v of every image, (n, …), by finite differences or in forward mode.

        Args:
            rows: numbers of the images, (n,).
            along: the directions, (n, …).
        """
        if self.engine == "finite":
            return (self.function(self.x[rows] + self.step * along, rows) - self.value[rows]) / self.step
        with _plain(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            dual = self.function(forward_ad.make_dual(self.x[rows], along.clone()), rows)
            tangent = forward_ad.unpack_dual(dual).tangent
            return torch.zeros_like(along) if tangent is None else tangent

    def _pulled(self, rows: Tensor, probes: Tensor) -> Tensor:
        """Jᵀ·v for all probes of every image, (n, k, …), from one graph."""
        with _plain(), torch.enable_grad():
            x = self.x[rows].detach().requires_grad_()
            with _FixedWeights():
                value = self.function(x, rows)
            last = probes.shape[1] - 1
            try:
                products = [
                    torch.autograd.grad(value, x, probes[:, number], retain_graph=number < last)[0]
                    for number in range(last + 1)
                ]
            except CheckpointError:
                raise UsageError(
                    "the network recomputes its activations, which cannot be done without graphs for its weights; "
                    "call its disable_gradient_checkpointing()"
                ) from None
        return torch.stack(products, dim=1)


def _plain() -> AbstractContextManager[None]:
    """Leave inference mode, in which a service may run its pipeline and which supports no derivatives."""
    return torch.inference_mode(mode=False)


class _FixedWeights(TorchFunctionMode):
    """Parameters enter every function as constants, so that no graph is kept for their gradients.

    `requires_grad_(False)` would also change the network for other threads, for instance one that trains it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def fixed(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_inference():
                # a graph may not keep a tensor of inference mode
                return value.clone()
            return value.detach() if isinstance(value, nn.Parameter) and value.requires_grad else value

        return func(*tree_map(fixed, args), **tree_map(fixed, kwargs or {}))
