"""diag ∂f/∂x of a network, estimated from products with the Jacobian, with its standard error.

Every probe v with entries ±1 gives v ⊙ (J·v), whose entries are J_ii + Σ_{j≠i} v_i·v_j·J_ij. Averaged over K probes of
random signs, the sum vanishes at the rate 1/√K (Hutchinson). Orthogonal probes are better. The entries of x are
coloured. A probe is a row of a Hadamard matrix, which gives all entries of one colour the same sign, times a random
sign for every entry. Over a whole set of probes the contributions of entries of different colours cancel exactly, and
only those between entries of the same colour remain. If the number of colours is no power of two, a probe has the
entries of one colour alone, times random signs: over a set that leaves the same contributions. Entries of the same
colour lie on a lattice over channels and positions whose points are as far from one another as possible, where the
Jacobian of a network is small. (The usual colouring has a block of positions for every channel. Its error is larger:
all entries of one colour are in one channel, one block's width from one another, while in other channels there are
places farther away.)

The errors of the entries of one diagonal are correlated, so the error of their sum cannot be computed from their
errors. If an affine function of the diagonal is wanted, for instance a sum over channels, the function is applied to
the result of every set of probes. Value, error and early stop are then those of the function.
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
"""The most probes of an orthogonal set; the search for a lattice takes longer the more there are."""


@dataclass(frozen=True)
class Diagonal:
    """An estimate of diag ∂f/∂x for B images, or of an affine function of it.

    Attributes:
        value: the estimate, (B, …), shaped like x or like the affine function's result.
        error: its standard error, of the same shape: 0 if the value is exact, NaN if there was one set of probes only.
        probes: the number of products with the Jacobian for every image, (B,).
    """

    value: Tensor
    error: Tensor
    probes: Tensor

    @property
    def relative_error(self) -> Tensor:
        """The root mean square of the error over that of the true diagonal, (B,); ∞ if the estimate is only noise.

        The mean square of the estimate contains the mean square of its error, which is subtracted first.
        """
        error, value = (numbers.double().flatten(1).square().mean(dim=1) for numbers in (self.error, self.value))
        return (error / (value - error).clamp_min(0)).sqrt()


@dataclass(frozen=True)
class DiagonalEstimator:
    """How to estimate a diagonal.

    Attributes:
        engine: how products with the Jacobian are computed; `auto` is `finite` in fp32 and fp64, else `reverse`.
        design: `orthogonal` or `random` probes.
        probes: the most products per image.
        group: probes of one orthogonal set, and colours. The error is estimated from the spread between sets, so
            there should be two sets or more.
        wanted: relative error at which to stop early; it takes at least three sets of probes. None takes all probes.
        step: length of the finite difference, in units of `scale`.
        memory: bytes that the tensors of one evaluation may take, without the weights. From the memory that one point
            takes follows how many points are evaluated at once, but at least one is.
        seed: of the probes, together with the seed of the image.
    """

    engine: Engine = "auto"
    design: Design = "orthogonal"
    probes: int = 16
    group: int = 8
    wanted: float | None = None
    step: float = 0.1
    # does not change the result, and so does not belong to its description
    memory: int = field(default=2 * 2**30, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be estimated."""
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
        if not 1 <= self.group <= LARGEST:
            raise UsageError(f"got a group of {self.group} probes; give 1 … {LARGEST}")
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
            function: f; see `Function`.
            x: the images, (B, C, h, w) or (B, tokens, channels).
            scale: length over which f is nearly linear, for a noisy image its σ; finite differences only.
            value: f(x) if it is known, (B, …); finite differences only.
            reduce: the affine function of diagonals (n, …), which treats every image alike, a sum over channels for
                instance.
            seeds: one per image, from which its probes are drawn. The estimate for an image then does not depend on the
                rest of the batch, and the errors of different images are independent. None gives all images the same
                probes.

        Raises:
            UsageError: for finite differences in half precision, values that are not finite, or a network that
                recomputes its activations in reverse mode.
        """
        engine = self._engine(x)
        # compiled code supports no tangents, and frees its graph at the first product
        uncompiled = nullcontext() if engine == "finite" else eagerly()
        with whole_floats() as rounded, uncompiled:
            if rounded and x.is_cuda:
                # the given value has the rounding of TF32, the values that it would be subtracted from have not
                value = None
            taken = "reverse" if engine == "exact" else engine
            jacobian = Jacobian(function, x, x if value is None else value, taken, self.step * scale)
            points = self._points(jacobian)
            rows = torch.arange(len(x))
            if engine == "finite" and value is None:
                value = torch.cat([function(x[part], part) for part in rows.split(points)])
                jacobian = replace(jacobian, value=value)
            # probes take memory too, so only as many images are taken together as one evaluation holds
            parts = []
            for images in rows.split(points if taken == "reverse" else max(1, points // self._portion)):
                if engine == "exact":
                    parts.append(_exact(jacobian, images, reduce))
                else:
                    image_seeds = [0 if seeds is None else seeds[image] for image in images.tolist()]
                    parts.append(self._estimate(jacobian, images, image_seeds, reduce, points))
        found = Diagonal(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Diagonal)))
        if not found.value.isfinite().all():
            raise NotFiniteError("the model's output is not finite; check its weights and dtype")
        return found

    def _engine(self, x: Tensor) -> Engine:
        """How products are computed at x."""
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
        """How many points may be evaluated at once; in reverse mode, of how many images graphs may be kept at once."""
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
        """The estimate for the images with numbers `images` (n,), with one seed for each of them."""
        x = jacobian.x
        size = self.group if self.design == "orthogonal" else 1
        # sums need double precision, which not every device has
        total = torch.zeros_like(reduce(torch.zeros(len(images), *x.shape[1:], dtype=torch.float64)))
        squares = torch.zeros_like(total)
        sets = torch.zeros(len(images), *[1] * (total.dim() - 1), dtype=torch.float64)
        left = torch.arange(len(images))
        found = _diagonal(total, squares, sets, size)
        # with the image's seed alone the probes would repeat the noise that the image was made from
        rngs = [np.random.default_rng([self.seed % 2**64, seed % 2**64]) for seed in seeds]
        signs = self._signs(x.shape[1:])
        # in how many probes of a set an entry takes part, the same for all entries
        parts = signs.count_nonzero(dim=0).max().item()
        for start in range(0, self.probes, self._portion):
            count = 1 if self.design == "orthogonal" else min(self._portion, self.probes - start)
            probes = torch.stack([signs * rademacher(x.shape[1:], count, rngs[row]) for row in left])
            products = jacobian.products(images[left], probes, points=points)
            means = products.unflatten(1, (-1, size)).sum(dim=2, dtype=_wide(x)).cpu().double() / parts
            means = reduce(means.flatten(0, 1)).unflatten(0, means.shape[:2])
            total[left] += means.sum(dim=1)
            squares[left] += means.square().sum(dim=1)
            sets[left] += means.shape[1]
            found = _diagonal(total, squares, sets, size)
            if self.wanted is not None:
                # an image that is done gets no more probes, so its estimate does not depend on the other images
                left = left[~(found.relative_error[left] <= self.wanted)]
            if not len(left):
                break
        return Diagonal(found.value.to(x.device, _wide(x)), found.error.to(x.device, _wide(x)), found.probes)

    @property
    def _portion(self) -> int:
        """The number of probes after which the error is computed."""
        return self.group if self.design == "orthogonal" else min(16, self.probes)

    def _signs(self, shape: torch.Size) -> Tensor:
        """The factors of the random signs: for every probe of an orthogonal set those of all entries, (group, …).

        An entry that takes no part in a probe has the factor 0.
        """
        if self.design == "random":
            return torch.ones(1)
        size = self.group
        signs = torch.eye(size) if size & (size - 1) else torch.from_numpy(hadamard(size)).float()
        return signs[:, coloured(shape, size)]


def _exact(jacobian: Jacobian, images: Tensor, reduce: Callable[[Tensor], Tensor]) -> Diagonal:
    """The exact diagonal for the images with numbers `images` (n,), entry by entry."""
    x = jacobian.x
    size = x[0].numel()
    total = torch.zeros(len(images), *x.shape[1:], dtype=torch.float64)
    for entries in torch.arange(size).split(64):
        basis = torch.zeros(len(entries), size)
        basis[torch.arange(len(entries)), entries] = 1.0
        probes = basis.view(-1, *x.shape[1:]).expand(len(images), *[-1] * x.dim())
        total += jacobian.products(images, probes, points=1).sum(dim=1).cpu().double()
    found = reduce(total).to(x.device, _wide(x))
    return Diagonal(found, torch.zeros_like(found), torch.full((len(images),), size))


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of estimates at x: single precision, or double if x has it."""
    return torch.promote_types(x.dtype, torch.float32)


def _diagonal(total: Tensor, squares: Tensor, sets: Tensor, size: int) -> Diagonal:
    """The estimate from the sum and the sum of squares over sets of `size` probes, of which there were `sets`."""
    mean = total / sets
    error = ((squares / sets - mean.square()).clamp_min(0) / (sets - 1).clamp_min(0)).sqrt()
    error = torch.where(sets > 1, error, torch.nan)
    return Diagonal(mean, error, sets.flatten().long() * size)


def rademacher(shape: torch.Size, count: int, rng: np.random.Generator) -> Tensor:
    """`count` independent random signs of `shape`, (count, *shape) float32 on the CPU."""
    return torch.from_numpy(2.0 * rng.integers(0, 2, (count, *shape)) - 1).float()


def coloured(shape: torch.Size, colours: int) -> Tensor:
    """The colour of every entry by its channel and position, in 0 … `colours` − 1, of shape `shape`; see `lattice`.

    Args:
        shape: (C, h, w), or (tokens, channels) of packed latents. Their tokens count as one row of the picture, so
            neighbours in neighbouring rows may have the same colour.
        colours: how many there are.
    """
    if len(shape) == 2:
        return coloured(torch.Size((shape[1], 1, shape[0])), colours)[:, 0].T.contiguous()
    deep, down, across = lattice(*shape, colours)
    channel, y, x = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    return (deep * channel + down * y + across * x) % colours


@cache
def lattice(channels: int, height: int, width: int, colours: int) -> tuple[int, int, int]:
    """By how much the colour changes from one channel, row and column to the next.

    Entries of the same colour disturb each other's estimates. The influence of one entry on another is assumed to fall
    as (1 + d²)⁻², where d² is the squared distance of their positions, plus 1 if their channels differ. The result is
    the lattice with the least influence between entries of the same colour.

    Args:
        channels: of the latents.
        height: of the latents.
        width: of the latents.
        colours: how many there are.
    """
    # positions farther away hardly count, and have the same colours in any case
    reach = 2 + math.isqrt(colours // channels)
    distances = [np.arange(1 - size, size) for size in (channels, min(reach + 1, height), min(reach + 1, width))]
    channel, y, x = (grid.ravel() for grid in np.meshgrid(*distances, indexing="ij"))
    weight = (channels - abs(channel)) / (1 + y**2 + x**2 + (channel != 0)) ** 2
    weight[(channel == 0) & (y == 0) & (x == 0)] = 0
    # mirrored lattices are as good, and so are multiples by numbers that share no divisor with that of the colours
    steps = np.arange(colours // 2 + 1)
    found = []
    for deep in (0, *(step for step in range(1, colours) if colours % step == 0)):
        for down in steps.tolist():
            like = (deep * channel + down * y + steps[:, None] * x) % colours == 0
            # mirror images cost the same, and rounding must not decide between them
            costs = (like @ weight).round(9)
            best = int(costs.argmin())
            found.append((float(costs[best]), deep, down, best))
    return min(found)[1:]
