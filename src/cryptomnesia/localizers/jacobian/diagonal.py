"""diag ∂f/∂x of a network, estimated from products with the Jacobian, with its own standard error.

Every probe v with entries ±1 gives v ⊙ (J·v), whose entries are J_ii plus Σ_{j≠i} v_i·v_j·J_ij. Averaged over
random signs the rest vanishes at the rate 1/√K (Hutchinson). Orthogonal probes do better: entries
are coloured, each probe gives all entries of a colour the same sign, a row of a Hadamard matrix, times one random
sign per entry, and the products of entries of different colour cancel exactly. What is left are entries of like
colour, which lie on a lattice over channels and positions that keeps them as far apart as it can: there a network's
Jacobian is small. (The usual colouring, a block of positions for every channel, leaves a larger error: it has all
like colours in one channel, at the block's width, when in other channels there are places farther away.)

Entries of one diagonal err together, so the error of a sum of them is not to be had from theirs. Where a linear
(or affine) function of the diagonal is wanted, a sum over channels say, it is applied to every set of probes, and
value, error and the early stop are its own.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

from cryptomnesia.errors import NotFiniteError, UsageError
from cryptomnesia.localizers.jacobian.memory import peak_bytes
from cryptomnesia.localizers.jacobian.process import eagerly, whole_floats
from cryptomnesia.localizers.jacobian.products import Function, Jacobian

Engine = Literal["auto", "exact", "reverse", "forward", "finite"]
Design = Literal["orthogonal", "random"]


LARGEST = 256
"""Probes of an orthogonal set, whose lattice takes the longer to find the more there are."""


@dataclass(frozen=True)
class Diagonal:
    """An estimate of diag ∂f/∂x for B images, or of an affine function of it.

    Attributes:
        value: (B, …), shaped like x, or like what the affine function makes of that.
        error: its standard error, likewise: 0 where exact, NaN where there was nothing to estimate it from.
        probes: products with the Jacobian that went into each image's estimate, (B,).
    """

    value: Tensor
    error: Tensor
    probes: Tensor

    @property
    def relative_error(self) -> Tensor:
        """Root mean square error over the root mean square of the value, (B,); ∞ where noise is all there is.

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
        wanted: relative error at which to stop early, which takes three sets of probes or more; None spends all.
        step: length of the finite difference, in units of `scale`.
        memory: bytes that the tensors of one evaluation may take, beside weights. As many points as fit, by the peak
            of one, are evaluated at once, and one where none does.
        seed: of the probes, together with each image's own.
    """

    engine: Engine = "auto"
    design: Design = "orthogonal"
    probes: int = 16
    group: int = 8
    wanted: float | None = None
    step: float = 0.1
    memory: int = field(default=2 * 2**30, repr=False)  # changes no result
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
        least = 3 * (self.group if self.design == "orthogonal" else 1)
        if self.wanted is not None and self.probes < least:
            raise UsageError(
                f"got a wanted error with {self.probes} probes, of which two sets are spent before any error is known; "
                f"give {least} or more"
            )
        if self.memory < 1 or self.step <= 0:
            raise UsageError(f"got memory={self.memory} and step={self.step:g}; give positive numbers")
        if not 1 <= self.group <= LARGEST or self.group & (self.group - 1):
            raise UsageError(f"got a group of {self.group} probes; give a power of two, {LARGEST} at most")
        if self.design == "orthogonal" and self.probes % self.group:
            raise UsageError(f"got {self.probes} orthogonal probes in groups of {self.group}; give a multiple")

    @torch.no_grad()
    def estimate(
        self,
        function: Function,
        x: Tensor,
        *,
        scale: float = 1.0,
        value: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
        seeds: Sequence[int] | None = None,
    ) -> Diagonal:
        """Diag ∂f/∂x at every image, or an affine function of it.

        Args:
            function: see `Function`.
            x: the images, (B, C, h, w) or (B, tokens, channels).
            scale: length over which f is still nearly linear, of a noisy image its σ; finite differences only.
            value: f(x), if known, (B, …); finite differences only.
            reduce: the affine function of diagonals (n, …), image by image, a sum over channels say.
            seeds: one per image, for probes of its own: an estimate then depends on nothing else in the batch, and
                the errors of different images are independent. None gives all images the same probes.

        Raises:
            UsageError: for finite differences in half precision, values that are not finite, or a network that
                recomputes its activations in reverse mode.
        """
        engine = self._engine(x)
        # compiled code knows no tangents, and gives up its graph at the first product
        plain = nullcontext() if engine == "finite" else eagerly()
        with whole_floats() as rounded, plain:
            if rounded and x.is_cuda:
                value = None  # it was computed with fewer bits than what it is subtracted from
            taken = "reverse" if engine == "exact" else engine
            jacobian = Jacobian(function, x, x if value is None else value, taken, self.step * scale)
            points = self._points(jacobian)
            every = torch.arange(len(x))
            if engine == "finite" and value is None:
                value = torch.cat([function(x[some], some) for some in every.split(points)])
                jacobian = replace(jacobian, value=value)
            # only as many images at a time as one evaluation takes: their probes take memory, too
            parts = []
            for images in every.split(points if taken == "reverse" else max(1, points // self._portion)):
                if engine == "exact":
                    parts.append(_exact(jacobian, images, reduce))
                else:
                    own = [0 if seeds is None else seeds[image] for image in images.tolist()]
                    parts.append(self._estimate(jacobian, images, own, reduce, points))
        found = Diagonal(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Diagonal)))
        if not found.value.isfinite().all():
            raise NotFiniteError("the model's output is not finite; check its weights and dtype")
        return found

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

    def _points(self, jacobian: Jacobian) -> int:
        """How many points may be evaluated at once, or in reverse mode how many images' graphs kept."""
        first, probe = torch.zeros(1, dtype=torch.long), torch.ones_like(jacobian.x[:1])[None]
        return max(1, self.memory // max(1, peak_bytes(lambda: jacobian.products(first, probe, points=1))))

    def _estimate(
        self,
        jacobian: Jacobian,
        images: Tensor,
        seeds: Sequence[int],
        reduce: Callable[[Tensor], Tensor],
        points: int,
    ) -> Diagonal:
        """The estimate of some images (n,), each with its seed."""
        x = jacobian.x
        each = self.group if self.design == "orthogonal" else 1
        # sums in double precision, on the CPU: not every device has that
        total = torch.zeros_like(reduce(torch.zeros(len(images), *x.shape[1:], dtype=torch.float64)))
        squares = torch.zeros_like(total)
        sets = torch.zeros(len(images), *[1] * (total.dim() - 1), dtype=torch.float64)
        left = torch.arange(len(images))
        found = _diagonal(total, squares, sets, each)
        # both seeds go through a hash: with the image's alone, probes would repeat the noise that it was made from
        rngs = [np.random.default_rng([self.seed % 2**64, seed % 2**64]) for seed in seeds]
        signs = self._signs(x.shape[1:])
        for start in range(0, self.probes, self._portion):
            count = 1 if self.design == "orthogonal" else min(self._portion, self.probes - start)
            probes = torch.stack([signs * rademacher(x.shape[1:], count, rngs[row]) for row in left])
            products = jacobian.products(images[left], probes, points=points)
            means = products.unflatten(1, (-1, each)).mean(dim=2, dtype=_wide(x)).cpu().double()
            means = reduce(means.flatten(0, 1)).unflatten(0, means.shape[:2])
            total[left] += means.sum(dim=1)
            squares[left] += means.square().sum(dim=1)
            sets[left] += means.shape[1]
            found = _diagonal(total, squares, sets, each)
            if self.wanted is not None:
                # an image that is done is left out, so that its estimate does not depend on the others
                left = left[~(found.relative_error[left] <= self.wanted)]
            if not len(left):
                break
        return Diagonal(found.value.to(x.device, _wide(x)), found.error.to(x.device, _wide(x)), found.probes)

    @property
    def _portion(self) -> int:
        """Probes after which the error is looked at."""
        return self.group if self.design == "orthogonal" else min(16, self.probes)

    def _signs(self, shape: torch.Size) -> Tensor:
        """What random signs are multiplied with, (group, …) for one probe after another of an orthogonal set."""
        if self.design == "random":
            return torch.ones(1)
        return torch.from_numpy(hadamard(self.group)).float()[:, coloured(shape, self.group)]


def _exact(jacobian: Jacobian, images: Tensor, reduce: Callable[[Tensor], Tensor]) -> Diagonal:
    """The diagonal of some images (n,), entry by entry."""
    x = jacobian.x
    size = x[0].numel()
    total = torch.zeros(len(images), *x.shape[1:], dtype=torch.float64)
    for some in torch.arange(size).split(64):
        basis = torch.zeros(len(some), size)
        basis[torch.arange(len(some)), some] = 1.0
        probes = basis.view(-1, *x.shape[1:]).expand(len(images), *[-1] * x.dim())
        total += jacobian.products(images, probes, points=1).sum(dim=1).cpu().double()
    found = reduce(total).to(x.device, _wide(x))
    return Diagonal(found, torch.zeros_like(found), torch.full((len(images),), size))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _diagonal(total: Tensor, squares: Tensor, sets: Tensor, each: int) -> Diagonal:
    mean = total / sets
    error = ((squares / sets - mean.square()).clamp_min(0) / (sets - 1).clamp_min(0)).sqrt()
    error = torch.where(sets > 1, error, torch.nan)
    return Diagonal(mean, error, sets.flatten().long() * each)


def rademacher(shape: torch.Size, count: int, rng: np.random.Generator) -> Tensor:
    """`count` independent random signs of `shape`, (count, *shape) float32 on the CPU."""
    return torch.from_numpy(2.0 * rng.integers(0, 2, (count, *shape)) - 1).float()


def coloured(shape: torch.Size, colours: int) -> Tensor:
    """A colour in 0 … `colours` − 1 for every entry, shaped like `shape`, by channel and position; see `lattice`.

    Args:
        shape: (C, h, w), or (tokens, channels) of packed latents, whose tokens count as one row: those of neighbouring
            rows may have like colours.
        colours: a power of two.
    """
    if len(shape) == 2:
        return coloured(torch.Size((shape[1], 1, shape[0])), colours)[:, 0].T.contiguous()
    deep, down, across = lattice(*shape, colours)
    channel, y, x = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    return (deep * channel + down * y + across * x) % colours


@cache
def lattice(channels: int, height: int, width: int, colours: int) -> tuple[int, int, int]:
    """By how much the colour changes from channel to channel, from row to row and from column to column.

    Of all lattices the one whose entries of like colour matter least to each other, if an entry's influence on
    another falls as (1 + d²)⁻², where d² is the squared distance of their positions, plus 1 if their channels differ.

    Args:
        channels: of the latents.
        height: of the latents.
        width: of the latents.
        colours: a power of two.
    """
    # positions farther away hardly count, and come in like colours anyway
    reach = 2 + math.isqrt(colours // channels)
    apart = [np.arange(1 - size, size) for size in (channels, min(reach + 1, height), min(reach + 1, width))]
    channel, y, x = (each.ravel() for each in np.meshgrid(*apart, indexing="ij"))
    weight = (channels - abs(channel)) / (1 + y**2 + x**2 + (channel != 0)) ** 2
    weight[(channel == 0) & (y == 0) & (x == 0)] = 0
    # mirrored lattices are as good, and so are multiples by odd numbers, which permute the colours
    steps = np.arange(colours // 2 + 1)
    found = []
    for deep in (0, *(1 << bit for bit in range(colours.bit_length() - 1))):
        for down in steps.tolist():
            like = (deep * channel + down * y + steps[:, None] * x) % colours == 0
            # mirror images cost the same, and which of them it is must not depend on the order of a sum
            costs = (like @ weight).round(9)
            best = int(costs.argmin())
            found.append((float(costs[best]), deep, down, best))
    return min(found)[1:]
