"""diag ∂f/∂x of a network, estimated from products with the Jacobian, with its own standard error.

Every probe v with entries ±1 gives v ⊙ (J·v), whose entries are J_ii plus Σ_{j≠i} v_i·v_j·J_ij. Averaged over
random signs the rest vanishes at the rate 1/√K (Hutchinson). Orthogonal probes do better: entries
are coloured by channel and by position within a small block, each probe gives all entries of a colour the
same sign, a row of a Hadamard matrix, times one random sign per entry, and the products of
entries of different colour cancel exactly. What is left are entries of the same channel a block or more apart,
where a network's Jacobian is small. (With as many channels as colours there is no room for blocks: then only the
channels are told apart.)

A product is taken in one of three ways. Finite differences need no graph and no automatic differentiation, so
probes batch freely, at one evaluation each; in half precision they would drown in rounding, and are refused.
Reverse mode (vᵀJ has the same diagonal) keeps a graph and works in any precision. Forward mode needs the
plain attention kernel, to which it switches. `exact` takes every unit vector for a probe, in reverse mode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from scipy.linalg import hadamard
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from cryptomnesia.errors import UsageError

Engine = Literal["auto", "exact", "reverse", "forward", "finite"]
Design = Literal["orthogonal", "random"]

Function = Callable[[Tensor, Tensor], Tensor]
"""f(x, rows): the values (n, …) at points x (n, …), of which point i belongs to image rows[i]; every
point on its own."""


@dataclass(frozen=True)
class Diagonal:
    """An estimate of diag ∂f/∂x for B images.

    Attributes:
        value: (B, …), shaped like x.
        error: its standard error, likewise: 0 where exact, NaN where there was nothing to estimate it from.
        probes: products with the Jacobian that went into each image's estimate, (B,).
    """

    value: Tensor
    error: Tensor
    probes: Tensor

    @property
    def relative_error(self) -> Tensor:
        """Root mean square error over the root mean square of the diagonal, (B,); ∞ where noise is all there is.

        The estimate's own mean square holds that of its error, which is taken away first.
        """
        error, value = (each.double().flatten(1).square().mean(dim=1) for each in (self.error, self.value))
        return (error / (value - error).clamp_min(0)).sqrt()


@dataclass(frozen=True)
class DiagonalEstimator:
    """How to estimate a diagonal.

    Attributes:
        engine: how products are taken; `auto` is `finite` in fp32 and fp64, else `reverse`.
        design: `orthogonal` or `random` probes.
        probes: products per image, at most.
        group: probes of one orthogonal set, a power of two; the error is estimated from the spread
            between sets, so there should be two or more.
        wanted: relative error at which to stop early; None spends all probes.
        step: length of the finite difference, in units of `scale`.
        rows: points evaluated at once; what memory there is decides.
        seed: of the probes. Image i of a batch gets those of `seed` whatever the batch, so its estimate does
            not depend on it, nor, drawn on the CPU, on the device.
    """

    engine: Engine = "auto"
    design: Design = "orthogonal"
    probes: int = 32
    group: int = 16
    wanted: float | None = None
    step: float = 0.1
    rows: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject what estimates nothing."""
        if self.engine not in get_args(Engine) or self.design not in get_args(Design):
            raise UsageError(
                f"got engine {self.engine!r} and design {self.design!r}; known are {', '.join(get_args(Engine))} "
                f"and {', '.join(get_args(Design))}"
            )
        if self.probes < 1:
            raise UsageError(f"got {self.probes} probes; give at least 1")
        if self.wanted is not None and not self.wanted > 0:
            raise UsageError(f"got a wanted error of {self.wanted:g}; give a positive one, or None")
        if self.rows < 1 or self.step <= 0:
            raise UsageError(f"got rows={self.rows} and step={self.step:g}; give positive numbers")
        if self.group < 1 or self.group & (self.group - 1):
            raise UsageError(f"got a group of {self.group} probes; give a power of two")
        if self.design == "orthogonal" and self.probes % self.group:
            raise UsageError(f"got {self.probes} orthogonal probes in groups of {self.group}; give a multiple")

    def estimate(self, function: Function, x: Tensor, *, scale: float = 1.0, value: Tensor | None = None) -> Diagonal:
        """Diag ∂f/∂x at every image.

        Args:
            function: see `Function`.
            x: the images, (B, C, h, w) or (B, tokens, channels).
            scale: length over which f is still nearly linear, of a noisy image its σ; finite differences only.
            value: f(x), if known, (B, …); finite differences only.

        Raises:
            UsageError: for finite differences in half precision, or values that are not finite.
        """
        engine = self._engine(x)
        if (
            engine == "finite"
            and x.is_cuda
            and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
        ):
            value = None  # it was computed with fewer bits than what it is subtracted from
        with _whole_floats():
            diagonal = (
                self._exact(function, x) if engine == "exact" else self._estimate(engine, function, x, scale, value)
            )
        if not diagonal.value.isfinite().all():
            raise UsageError("the model's output is not finite; check its weights and dtype")
        return diagonal

    def _engine(self, x: Tensor) -> Engine:
        """How products are taken at x."""
        half = x.dtype not in (torch.float32, torch.float64)
        if torch.is_autocast_enabled(x.device.type):
            half = True
        if self.engine == "auto":
            return "reverse" if half else "finite"
        if self.engine == "finite" and half:
            precision = "autocast" if x.dtype in (torch.float32, torch.float64) else str(x.dtype).removeprefix("torch.")
            raise UsageError(
                f"finite differences drown in the rounding of {precision}; "
                "run the model in float32, or give engine='reverse'"
            )
        return self.engine

    def _estimate(self, engine: Engine, function: Function, x: Tensor, scale: float, value: Tensor | None) -> Diagonal:
        each = self.group if self.design == "orthogonal" else 1
        # sums in double precision, on the CPU: not every device has that
        total = torch.zeros(x.shape, dtype=torch.float64)
        squares = torch.zeros_like(total)
        sets = torch.zeros(len(x), *[1] * (x.dim() - 1), dtype=torch.float64)
        left = torch.arange(len(x))
        diagonal = _diagonal(total, squares, sets, each)
        for probes in self._designs(x.shape[1:]):
            own = None if value is None else value[left]
            products = self._products(engine, lambda at, rows: function(at, left[rows]), x[left], probes, scale, own)  # noqa: B023
            means = products.double().cpu().unflatten(1, (-1, each)).mean(dim=2)
            total[left] += means.sum(dim=1)
            squares[left] += means.square().sum(dim=1)
            sets[left] += means.shape[1]
            diagonal = _diagonal(total, squares, sets, each)
            if self.wanted is not None:
                # an image that is done is left out, so that its estimate does not depend on the others
                left = left[~(diagonal.relative_error[left] <= self.wanted)]
            if not len(left):
                break
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Diagonal(diagonal.value.to(x.device, dtype), diagonal.error.to(x.device, dtype), diagonal.probes)

    def _exact(self, function: Function, x: Tensor) -> Diagonal:
        size = x[0].numel()
        found = torch.zeros(x.shape, dtype=torch.float64)
        for some in torch.arange(size).split(64):
            basis = torch.zeros(len(some), size)
            basis[torch.arange(len(some)), some] = 1.0
            products = self._products("reverse", function, x, basis.view(-1, *x.shape[1:]), 1.0, None)
            found += products.double().cpu().sum(dim=1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Diagonal(found.to(x.device, dtype), torch.zeros_like(x, dtype=dtype), torch.full((len(x),), size))

    def _designs(self, shape: torch.Size) -> Iterator[Tensor]:
        """Probes (K, …) in portions, after each of which the error may be looked at."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.design == "orthogonal":
            colours = coloured(shape, self.group)
            signs = torch.from_numpy(hadamard(self.group)).float()[:, colours]
            for _ in range(self.probes // self.group):
                yield signs * rademacher(shape, 1, generator)
        else:
            for start in range(0, self.probes, 16):
                yield rademacher(shape, min(16, self.probes - start), generator)

    def _products(
        self, engine: str, function: Function, x: Tensor, probes: Tensor, scale: float, value: Tensor | None
    ) -> Tensor:
        """The products v ⊙ (J·v) of every image for every probe, (B, k, …)."""
        probes = probes.to(x)
        if engine == "reverse":
            return _reverse(function, x, probes, self.rows)
        step = self.step * scale
        if engine == "finite" and value is None:
            value = torch.cat([function(x[rows], rows) for rows in torch.arange(len(x)).split(self.rows)])
        count = len(probes)
        found = []
        for image, probe in (
            pair.T for pair in torch.cartesian_prod(torch.arange(len(x)), torch.arange(count)).split(self.rows)
        ):
            at, along = x[image], probes[probe]
            if engine == "finite":
                assert value is not None
                change = (function(at + step * along, image) - value[image]) / step
            else:
                with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
                    dual = function(forward_ad.make_dual(at, along), image)
                    tangent = forward_ad.unpack_dual(dual).tangent
                    change = torch.zeros_like(at) if tangent is None else tangent
            found.append(along * change)
        return torch.cat(found).unflatten(0, (len(x), count))


def _reverse(function: Function, x: Tensor, probes: Tensor, rows: int) -> Tensor:
    """V ⊙ (Jᵀ·v), one graph for as many images as fit."""
    found = []
    for some in torch.arange(len(x)).split(rows):
        with torch.enable_grad():
            at = x[some].detach().requires_grad_()
            value = function(at, some)
            products = [
                probe * torch.autograd.grad(value, at, probe.expand_as(value), retain_graph=number < len(probes))[0]
                for number, probe in enumerate(probes, start=1)
            ]
        found.append(torch.stack(products, dim=1))
    return torch.cat(found)


def _diagonal(total: Tensor, squares: Tensor, sets: Tensor, each: int) -> Diagonal:
    mean = total / sets
    error = ((squares / sets - mean.square()).clamp_min(0) / (sets - 1).clamp_min(0)).sqrt()
    error = torch.where(sets > 1, error, torch.nan)
    return Diagonal(mean, error, sets.flatten().long() * each)


@contextmanager
def _whole_floats() -> Iterator[None]:
    """Without TF32, whose ten bits a finite difference would consist of."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def rademacher(shape: torch.Size, count: int, generator: torch.Generator) -> Tensor:
    """`count` independent random signs of `shape`, (count, *shape) float32 on the CPU."""
    return torch.randint(0, 2, (count, *shape), generator=generator).float().mul_(2).sub_(1)


def coloured(shape: torch.Size, colours: int) -> Tensor:
    """A colour in 0 … `colours` − 1 for every entry, shaped like `shape`: by channel, then by place in a block.

    Channels that are fewer than the colours leave room for blocks of neighbouring positions, as square as
    powers of two allow; where there are more channels than colours, several share one.

    Args:
        shape: (C, h, w), or (tokens, channels) of packed latents.
        colours: a power of two.
    """
    if len(shape) == 2:
        return coloured(torch.Size((shape[1], shape[0], 1)), colours).squeeze(-1).T.contiguous()
    channels, height, width = shape
    room = max(1, colours // (1 << (channels - 1).bit_length()))
    across = 1 << (room.bit_length() // 2)
    down = room // across
    if width == 1:
        down, across = room, 1
    channel, y, x = torch.meshgrid(torch.arange(channels), torch.arange(height), torch.arange(width), indexing="ij")
    return (channel * room + (y % down) * across + x % across) % colours
