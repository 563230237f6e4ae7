"""Calibration: what a setup does on captions that nobody memorized, and p-values from it.

Reference captions are split in two. The first part gives the stability regions (mean and deviation
of every norm at every evaluation). The second, scored against the first, gives each detector's null
distribution. A new image and the second part are then exchangeable whenever the new caption is like
the reference ones, so the conformal p-value

    p = (1 + #{null ≥ s})/(n + 1)

satisfies P(p ≤ a) ≤ a for every a and any score. n references can support rates down to 1/(n + 1).
The null is kept for every evaluation, so a running score can be judged early, against the running
scores of the references at the same place. The promise holds for one look, at a place chosen beforehand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.detectors import DETECTORS, SIGNALS, MapSignal, Reference
from cryptomnesia.detectors.base import Moments
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, prompts_digest, save_checked
from cryptomnesia.localizers.methods import check_methods, method
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.pipelines.fingerprint import Fingerprint, differing, fingerprint
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import Progress, generate
from cryptomnesia.tracing.trajectory import Trajectory, joined

FORMAT = 1
"""Version of the file layout."""

FIRST_SEED = 1_000_000
"""Seed of the first reference image, far from the seeds that people pick."""


@dataclass(frozen=True)
class Calibration:
    """Stability regions and null distributions of one setup.

    Attributes:
        fingerprint: the setup.
        reference: moments of the norms per evaluation.
        null: detector name → running scores of the second part of the references, each (n, N).
        prompts_sha256: hash of the reference prompts.
        prompts: how many of them there were.
    """

    fingerprint: Fingerprint
    reference: Reference
    null: dict[str, Tensor]
    prompts_sha256: str
    prompts: int

    @classmethod
    def fit(
        cls,
        pipe: Any,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        detectors: Sequence[str] = (),
        seed: int = FIRST_SEED,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> "Calibration":
        """Generate one image for every reference prompt and learn from them.

        A third of the prompts, picked at random, gives the regions, the rest the null.

        Args:
            pipe: a pipeline of a known family.
            prompts: at least 100 different captions that are not memorized, like those to be judged.
                150 give a null of 100, enough for a false-positive rate of 1%. Of a model without captions
                only their number counts.
            sampling: the settings that the calibration is for.
            detectors: means of maps, names of `cryptomnesia.detectors.SIGNALS`, to calibrate as well. Those that cost
                nothing always are.
            seed: image i has seed `seed` + i; far from the seeds of what will be judged.
            batch_size: images per call.
            progress: called with the number of images done.

        Raises:
            UsageError: for too few or repeated prompts, detectors that are unknown or lack what they need, or a model
                whose output is not finite.
        """
        check_references(prompts, repeated=not adapter_for(pipe).conditional)
        signals = signals_of(pipe, sampling, detectors)
        seeds = range(seed, seed + len(prompts))
        batches = generate(
            pipe, prompts, seeds, sampling, batch_size=batch_size, signals=signals, decode=False, progress=progress
        )
        return cls.of(pipe, prompts, sampling, joined([replace(each.trajectory, steps={}) for each in batches]))

    @classmethod
    def of(cls, pipe: Any, prompts: Sequence[str], sampling: Sampling, seen: Trajectory) -> "Calibration":
        """Learn from what was `seen` of one image for every reference prompt; see `fit`."""
        if not seen.complete:
            raise UsageError(
                "the reference runs ended before their last step; calibrate with options that let them end"
            )
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
        cut = len(prompts) // 3
        reference = Reference.fit(seen.rows(order[:cut]).norms)
        rest = seen.rows(order[cut:])
        guided = not seen.norms.guidance.isnan().all()
        judges = [make(reference) for name, make in DETECTORS.items() if name not in SIGNALS or name in seen.signals]
        null = {judge.name: judge.running(rest) for judge in judges if guided or "uncond" not in judge.needs}
        if any(scores.isnan().any() for scores in null.values()):
            raise UsageError(
                "the model's output holds NaN or infinity on reference prompts; check its weights and dtype"
            )
        return cls(fingerprint(pipe, sampling), reference, null, prompts_digest(prompts), len(prompts))

    @property
    def sampling(self) -> Sampling:
        """The settings that the calibration is for."""
        return Sampling(**{each.name: self.fingerprint[each.name] for each in fields(Sampling)})

    @property
    def lowest_rate(self) -> float:
        """The smallest false-positive rate that the null supports."""
        return 1 / (min(map(len, self.null.values())) + 1)

    def p_value(self, detector: str, scores: Tensor, evaluation: int = -1) -> Tensor:
        """Conformal p-values of the scores (B,) after an evaluation, float64; NaN for a score of NaN."""
        null = self._null(detector, evaluation)
        above = (null[None, :] >= scores[:, None]).sum(dim=1)
        p = (1 + above.double()) / (len(null) + 1)
        return p.masked_fill(scores.isnan(), torch.nan)

    def threshold(self, detector: str, rate: float, evaluation: int = -1) -> float:
        """The smallest score after an evaluation that is flagged at `rate`: its p-value is ≤ `rate`.

        Raises:
            UsageError: if the rate is none, or the references are too few for it.
        """
        if not 0 < rate < 1:
            raise UsageError(f"got the false-positive rate {rate:g}; give one between 0 and 1")
        null = self._null(detector, evaluation).sort(descending=True).values
        allowed = int(rate * (len(null) + 1) + 1e-9) - 1
        if allowed < 0:
            need = math.ceil(1 / rate - 1e-9) - 1
            raise UsageError(
                f"a false-positive rate of {rate:g} needs at least {need} null references, the calibration has "
                f"{len(null)}; ask for {_ceil(self.lowest_rate)} or more, or calibrate on "
                f"{math.ceil(1.5 * need)} prompts"
            )
        return torch.nextafter(null[allowed], torch.tensor(torch.inf)).item()

    def check(self, pipe: Any, sampling: Sampling, weights: dict[str, str] | None = None) -> None:
        """Refuse any other setup.

        Args:
            pipe: the pipeline.
            sampling: the settings.
            weights: `weights_digests` of the pipeline, if already known.

        Raises:
            UsageError: naming everything that differs.
        """
        if apart := differing(self.fingerprint, fingerprint(pipe, sampling, weights)):
            raise UsageError(
                f"the calibration was made with another setup: {'; '.join(apart)}; "
                "use that setup, or make one for this with `cryptomnesia calibrate`"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the rest as JSON in its header.

        Raises:
            UsageError: if it cannot be written there.
        """
        tensors = {f"null/{name}": scores for name, scores in self.null.items()}
        for norm in fields(Reference):
            moments: Moments = getattr(self.reference, norm.name)
            tensors |= {f"reference/{norm.name}/mean": moments.mean, f"reference/{norm.name}/std": moments.std}
        about = {"fingerprint": self.fingerprint, "prompts_sha256": self.prompts_sha256, "prompts": self.prompts}
        save_checked(path, "calibration", FORMAT, about, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, not a calibration, edited by hand, or of another version.
        """
        about, tensors = load_checked(path, "calibration", FORMAT)
        try:
            moments = {
                norm.name: Moments(tensors[f"reference/{norm.name}/mean"], tensors[f"reference/{norm.name}/std"])
                for norm in fields(Reference)
            }
        except KeyError as error:
            raise UsageError(f"{path} lacks {error}; make it anew with `cryptomnesia calibrate`") from None
        null = {key.removeprefix("null/"): value for key, value in tensors.items() if key.startswith("null/")}
        return cls(about["fingerprint"], Reference(**moments), null, about["prompts_sha256"], about["prompts"])

    def _null(self, detector: str, evaluation: int) -> Tensor:
        """Scores of the references after an evaluation, (n,)."""
        if detector not in self.null:
            how = f", or calibrate with `--detector {detector}`" if detector in SIGNALS else ""
            raise UsageError(f"the calibration knows no {detector}; take one of {', '.join(self.null)}{how}")
        null = self.null[detector]
        if not -null.shape[1] <= evaluation < null.shape[1]:
            raise UsageError(
                f"got evaluation {evaluation} of a run of {null.shape[1]}; give one in 0 … {null.shape[1] - 1}"
            )
        return null[:, evaluation]


def signals_of(pipe: Any, sampling: Sampling, detectors: Sequence[str]) -> list[MapSignal]:
    """What is to be taken of runs for `detectors`, those that cost nothing left out.

    Raises:
        UsageError: for a detector that is unknown, or lacks what it needs.
    """
    if unknown := set(detectors) - DETECTORS.keys():
        raise UsageError(f"got the unknown detector {min(unknown)!r}; known are {', '.join(DETECTORS)}")
    names = [name for name in SIGNALS if name in detectors]
    if names:
        check_methods(pipe, sampling, [method(name) for name in names])
    return [SIGNALS[name] for name in names]


def check_references(prompts: Sequence[str], *, repeated: bool = False, rate: float | None = None) -> None:
    """Refuse reference prompts that are too few, or repeated and so not independent, unless that is allowed.

    Args:
        prompts: of the references.
        repeated: whether prompts may be there more than once.
        rate: a false-positive rate that they are to support.

    Raises:
        UsageError: with the numbers.
    """
    if len(prompts) < 100:
        raise UsageError(f"got {len(prompts)} reference prompts; give at least 100 (150 for a rate of 1%)")
    again = len(prompts) - len(set(prompts))
    if again and not repeated:
        raise UsageError(f"{again} of {len(prompts)} reference prompts are repeated; give every prompt once")
    if rate is not None and (null := len(prompts) - len(prompts) // 3) < (need := math.ceil(1 / rate - 1e-9) - 1):
        raise UsageError(
            f"{len(prompts)} reference prompts leave {null} for the null, a rate of {rate:g} needs {need}; "
            f"give {math.ceil(1.5 * need)} or more, or a higher rate"
        )


def _ceil(rate: float) -> str:
    """`rate` with three decimals, rounded up."""
    return f"{math.ceil(rate * 1000 - 1e-9) / 1000:g}"
