"""Products with the Jacobian of a network, in one of three ways.

Finite differences need no graph and no automatic differentiation, so probes batch freely, at one evaluation each;
in half precision they would drown in rounding. Reverse mode (vᵀJ has the same diagonal as J·v) keeps a graph, though
none for the weights, and works in any precision. Forward mode needs the plain attention kernel, to which it
switches. Only finite differences can leave a compiled network compiled: its code knows no tangents, and gives
up its graph at the first product.
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
"""f(x, rows): the values (n, …) at points x (n, …), of which point i belongs to image rows[i]; every
point on its own."""


@dataclass(frozen=True)
class Jacobian:
    """The Jacobian of a function at images x (B, …), as products with it.

    Attributes:
        function: see `Function`.
        x: the images.
        value: f(x); finite differences only.
        engine: `reverse`, `forward` or `finite`.
        step: length of the finite difference.
    """

    function: Function
    x: Tensor
    value: Tensor
    engine: str
    step: float

    def products(self, images: Tensor, probes: Tensor, *, points: int) -> Tensor:
        """The products v ⊙ (J·v) of some images (n,) for their probes (n, k, …), shaped like these.

        Args:
            images: which.
            probes: of these images.
            points: to be evaluated at once; in reverse mode all images are.
        """
        probes = probes.to(self.x)
        if self.engine == "reverse":
            return probes * self._pulled(images, probes)
        rows, along = images.repeat_interleave(probes.shape[1]), probes.flatten(0, 1)
        found = torch.empty_like(along)
        for some in (slice(start, start + points) for start in range(0, len(along), points)):
            found[some] = along[some] * self._pushed(rows[some], along[some])
        return found.view_as(probes)

    def _pushed(self, rows: Tensor, along: Tensor) -> Tensor:
        """J·v for one probe of each image, (n, …)."""
        if self.engine == "finite":
            return (self.function(self.x[rows] + self.step * along, rows) - self.value[rows]) / self.step
        with _plain(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            dual = self.function(forward_ad.make_dual(self.x[rows], along.clone()), rows)
            tangent = forward_ad.unpack_dual(dual).tangent
            return torch.zeros_like(along) if tangent is None else tangent

    def _pulled(self, rows: Tensor, probes: Tensor) -> Tensor:
        """Jᵀ·v for all probes of each image, (n, k, …), from one graph."""
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
    """Outside inference mode, in which a service may run its pipeline, and which knows no derivatives."""
    return torch.inference_mode(mode=False)


class _FixedWeights(TorchFunctionMode):
    """Parameters enter every function as constants, so that no graph is kept for gradients that nobody wants.

    `requires_grad_(False)` would do as much to other threads, one that trains the network say.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def fixed(each: Any) -> Any:
            if isinstance(each, Tensor) and each.is_inference():
                return each.clone()  # as it is, no graph may keep it
            return each.detach() if isinstance(each, nn.Parameter) and each.requires_grad else each

        return func(*tree_map(fixed, args), **tree_map(fixed, kwargs or {}))
