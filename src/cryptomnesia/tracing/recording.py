"""The norms of a run, recorded evaluation by evaluation.

After an evaluation of the network the code of every operation has to be fetched from memory again, which takes longer
than an operation on small latents. So an evaluation is only copied, in one operation, and the norms of several
evaluations are computed together: as soon as the copies take more than a little memory, or somebody asks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Kind, Prediction, detail, norms
from cryptomnesia.pipelines.inputs import GRID, Inputs
from cryptomnesia.tracing.information import log_snr, noise_scale, shares
from cryptomnesia.tracing.trajectory import NORMS, Norm, Step

_BYTES = 2**20
"""The most memory that copies of several evaluations take."""


class _Copy(NamedTuple):
    """What the norms of an evaluation are computed from.

    Attributes:
        tensors: the latents after the step and before it, what the network was given, its output as the solver was
            given it, that of the conditional branch and, with guidance, that of the unconditional one, each (B, …).
        alpha: α of the step.
        sigma: σ of the step.
        kind: what the network predicts.
        inputs: the part of the conditioning that says how latents are packed.
    """

    tensors: Tensor | Sequence[Tensor]
    alpha: float
    sigma: float
    kind: Kind
    inputs: Inputs


class Norms:
    """The norms of the evaluations of one run; its length is the number of evaluations.

    Attributes:
        images: the number of images, 0 before the first evaluation.
    """

    def __init__(self, further: Sequence[Norm] = ()) -> None:
        """Record the norms of `NORMS`, and `further` ones."""
        self.images = 0
        self._further = further
        self._length = 0
        self._copies: list[_Copy] = []
        self._bytes = 0
        # name of a norm, number of an evaluation, and values of that evaluation and the following ones, (n, B)
        self._found: list[tuple[str, int, Tensor]] = []
        self._levels: list[float] = []
        self._scales: list[float] = []
        self._estimate: Tensor | None = None
        self._previous: Step | None = None

    def __len__(self) -> int:
        """The number of evaluations."""
        return self._length

    def add(self, step: Step, latents: Tensor, used: Prediction) -> None:
        """Record a step that the solver took with the prediction `used`, and that led to `latents`, (B, …).

        Raises:
            UsageError: for a further norm that does not give one number per image.
        """
        cond, uncond = step.cond, step.uncond
        tensors = [latents, step.sample, cond.x, used.value, cond.value, *([] if uncond is None else [uncond.value])]
        alike = all(value.shape == latents.shape and value.dtype == latents.dtype for value in tensors)
        if self._copies and not (alike and len(self._copies[-1].tensors) == len(tensors)):
            self._compute()
        # whoever has the tensors may write into them as soon as the step is over
        copied = torch.stack(tensors).detach() if alike else tensors
        inputs = {GRID: step.cond_inputs[GRID]} if GRID in step.cond_inputs else {}
        self._copies.append(_Copy(copied, cond.alpha, cond.sigma, cond.kind, inputs))
        self._levels.append(log_snr(cond))
        self._scales.append(noise_scale(cond))
        if self._further:
            with torch.no_grad():
                for norm in self._further:
                    values = _per_image(norm, norm(step, latents, self._previous), latents)
                    self._found.append((norm.name, self._length, values))
            self._previous = step
        self.images = len(latents)
        self._length += 1
        self._bytes += len(tensors) * latents.nbytes
        if not alike or self._bytes > _BYTES:
            self._compute()

    @torch.no_grad()
    def _compute(self) -> None:
        """Compute the norms of the evaluations that are only copied."""
        if not self._copies:
            return
        copies, self._copies, self._bytes = self._copies, [], 0
        first = self._length - len(copies)
        # what is not alike is one evaluation
        latents, before, x, used, cond, *uncond = (
            [value.unsqueeze(0) for value in copies[0].tensors]
            if len(copies) == 1
            else torch.stack([copy.tensors for copy in copies]).unbind(1)  # type: ignore[arg-type]
        )
        clean, estimates = (_estimates(copies, x, value) for value in (used, cond))
        found = [("delta", first, latents - before), ("z", first, latents), ("x0", first, clean)]
        if uncond:
            found.append(("guidance", first, cond - uncond[0]))
        if self._estimate is not None:
            found.append(("drift", first, estimates[:1] - self._estimate))
        if len(estimates) > 1:
            found.append(("drift", first + 1, estimates[1:] - estimates[:-1]))
        self._estimate = estimates[-1]
        self._found += [
            (name, number, norms(values.flatten(0, 1)).view(len(values), -1)) for name, number, values in found
        ]
        details = detail(clean.flatten(0, 1), copies[0].inputs)
        self._found.append(("detail", first, details.view(len(clean), -1)))

    def columns(self) -> dict[str, Tensor]:
        """Name of a norm → its values, (B, N) float32 on the CPU, NaN where there is none."""
        self._compute()
        names = (*NORMS, *(norm.name for norm in self._further))
        columns = {name: torch.full((self._length, self.images), torch.nan) for name in names}
        # one transfer for all of them
        values = torch.cat([values for _, _, values in self._found]).cpu().split([len(v) for _, _, v in self._found])
        for (name, number, _), rows in zip(self._found, values, strict=True):
            columns[name][number : number + len(rows)] = rows
        columns["information"] = self._information(columns["guidance"])
        return {name: column.T.contiguous() for name, column in columns.items()}

    def _information(self, guidance: Tensor) -> Tensor:
        """The nats between every evaluation and the one before, (N, B), of which `guidance` has the shape."""
        squared = (torch.tensor(self._scales).unsqueeze(1) * guidance) ** 2
        earlier, parts, latest = [], [], None
        for number, level in enumerate(self._levels):
            parts.append(shares(None if latest is None else self._levels[latest], level))
            earlier.append(number if latest is None else latest)
            if latest is None or level > self._levels[latest]:
                # what a solver that goes back to more noise sees there has been counted
                latest = number
        first, second = torch.tensor(parts).unsqueeze(2).unbind(1)
        # an evaluation that has no share may be anything, infinite for instance
        return torch.where(first == 0, 0, first * squared[earlier]) + second * squared


def _estimates(copies: Sequence[_Copy], x: Tensor, value: Tensor) -> Tensor:
    """x̂_0 of the evaluations of copies with the inputs x and the outputs `value` of the network, both (n, B, …)."""
    if len(copies) > 1 and x.dtype in (torch.float32, torch.float64):
        alpha, sigma = (
            torch.tensor([getattr(copy, name) for copy in copies], dtype=x.dtype, device=x.device)
            for name in ("alpha", "sigma")
        )
        shape = (-1, *[1] * (x.dim() - 1))
        # tensors in the place of numbers, one for every evaluation
        levels: tuple[Any, Any] = alpha.view(shape), sigma.view(shape)
        return Prediction(x, value, *levels, copies[0].kind).x0
    # in half precision every operation rounds, as it did for the runs of a calibration
    return torch.stack(
        [Prediction(x[n], value[n], copy.alpha, copy.sigma, copy.kind).x0 for n, copy in enumerate(copies)]
    )


def _per_image(norm: Norm, values: Tensor, latents: Tensor) -> Tensor:
    """The values of a norm as (1, B) float32.

    Raises:
        UsageError: for values of another shape.
    """
    images = len(latents)
    if values.shape != (images,):
        raise UsageError(
            f"the norm {norm.name!r} gave values of shape {tuple(values.shape)} for {images} images; it has to give "
            "one number per image"
        )
    return values.detach().to(latents.device, torch.float32).unsqueeze(0)
