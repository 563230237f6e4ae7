"""Calibration: what a setup does on captions that nobody memorized, and p-values from it.

Reference captions are split in two. The first part gives the stability regions (mean and deviation
of every norm at every evaluation). The second, scored against the first, gives each detector's null
distribution. A new image and the second part are then exchangeable whenever the new caption is like
the reference ones, so the conformal p-value

    p = (1 + #{null ≥ s})/(n + 1)

satisfies P(p ≤ a) ≤ a for every a and any score. n references can support rates down to 1/(n + 1).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import cryptomnesia
from cryptomnesia.detect import DETECTORS, Reference
from cryptomnesia.detect.base import Moments
from cryptomnesia.errors import UsageError
from cryptomnesia.sampling import Sampling, generate
from cryptomnesia.trajectory import Norms, Trajectory

FORMAT = 1
"""Version of the file layout."""

Fingerprint = dict[str, Any]
"""Everything a calibration depends on, as JSON values."""


def fingerprint(pipe: Any, sampling: Sampling) -> Fingerprint:
    """What identifies a setup: weights, scheduler, settings, dtype."""
    config = {key: value for key, value in dict(pipe.scheduler.config).items() if not key.startswith("_")}
    return {
        "pipeline": type(pipe).__name__,
        "weights": weights_digest(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, default=str, sort_keys=True)),
        "steps": sampling.steps,
        "guidance": float(sampling.guidance),
        "height": sampling.height,
        "width": sampling.width,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
    }


def weights_digest(pipe: Any) -> str:
    """SHA-256 over names, shapes and values of denoiser and text encoder, in half precision.

    Of large tensors some 65,536 evenly spaced values are read, so that a model of any size takes a
    moment and any training step still shows. Half precision: a checkpoint is the same model
    whether it was loaded in fp32 or fp16.
    """
    digest = hashlib.sha256()
    for module in (pipe.unet, pipe.text_encoder):
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            flat = value.detach().flatten()
            some = flat[:: max(1, len(flat) // 65_536)].to("cpu", torch.float16)
            digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Calibration:
    """Stability regions and null distributions of one setup.

    Attributes:
        fingerprint: the setup.
        reference: moments of the norms per evaluation.
        null: detector name → scores of the second part of the references, each (n,).
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
        seed: int = 0,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> "Calibration":
        """Generate one image for every reference prompt and learn from them.

        A third of the prompts gives the regions, the rest the null.

        Args:
            pipe: a pipeline of a known family.
            prompts: at least 100 captions that are not memorized, like those to be judged.
            sampling: the settings that the calibration is for.
            seed: image i has seed `seed` + i.
            batch_size: images per call.
            progress: called with the number of images done.
        """
        if len(prompts) < 100:
            raise UsageError(f"got {len(prompts)} reference prompts; give at least 100")
        seen: list[Trajectory] = []
        done = 0
        for batch in generate(pipe, prompts, range(seed, seed + len(prompts)), sampling, batch_size=batch_size):
            seen.append(batch.trajectory)
            done += len(batch.prompts)
            if progress is not None:
                progress(done)
        cut = len(prompts) // 3
        whole = Trajectory(
            seen[0].timesteps,
            Norms(*(torch.cat([getattr(each.norms, norm.name) for each in seen]) for norm in fields(Norms))),
            {},
            torch.cat([each.latents for each in seen]),
            complete=all(each.complete for each in seen),
        )
        order = range(len(prompts))
        reference = Reference.fit(whole.rows([*order[:cut]]).norms)
        rest = whole.rows([*order[cut:]])
        null = {name: make(reference).score(rest) for name, make in DETECTORS.items()}
        return cls(
            fingerprint(pipe, sampling),
            reference,
            {name: scores for name, scores in null.items() if not scores.isnan().any()},
            hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
            len(prompts),
        )

    def p_value(self, detector: str, scores: Tensor) -> Tensor:
        """Conformal p-values of `scores` (B,), NaN where the score is NaN."""
        null = self._null(detector)
        above = (null[None, :] >= scores[:, None]).sum(dim=1)
        p = (1.0 + above) / (len(null) + 1.0)
        return torch.where(scores.isnan(), torch.nan, p)

    def threshold(self, detector: str, rate: float) -> float:
        """The smallest score that is flagged at false-positive rate `rate`: its p-value is ≤ `rate`.

        Raises:
            UsageError: if the references are too few for that rate.
        """
        null = self._null(detector).sort(descending=True).values
        allowed = int(rate * (len(null) + 1) + 1e-9) - 1
        if allowed < 0:
            need = int(1 / rate + 1e-9)
            raise UsageError(
                f"a false-positive rate of {rate:g} needs at least {need} null references, the calibration "
                f"has {len(null)}; ask for at least {1 / (len(null) + 1):.2g} or calibrate on more prompts"
            )
        return torch.nextafter(null[allowed], torch.tensor(torch.inf)).item()

    def check(self, pipe: Any, sampling: Sampling) -> None:
        """Refuse any other setup.

        Raises:
            UsageError: naming everything that differs.
        """
        now = fingerprint(pipe, sampling)
        flat_then, flat_now = _flat(self.fingerprint), _flat(now)
        differing = [
            f"{key} is {_short(flat_now.get(key))}, calibrated {_short(flat_then.get(key))}"
            for key in sorted(flat_then.keys() | flat_now.keys())
            if flat_then.get(key) != flat_now.get(key)
        ]
        if differing:
            raise UsageError(
                f"the calibration was made with another setup: {'; '.join(differing)}; "
                "use that setup, or make one for this with `cryptomnesia calibrate`"
            )

    def save(self, path: Path) -> None:
        """Write one safetensors file with the rest as JSON in its header."""
        tensors = {f"null/{name}": scores for name, scores in self.null.items()}
        for norm in fields(Reference):
            moments: Moments = getattr(self.reference, norm.name)
            tensors |= {f"reference/{norm.name}/mean": moments.mean, f"reference/{norm.name}/std": moments.std}
        about = {
            "format": FORMAT,
            "cryptomnesia": cryptomnesia.__version__,
            "fingerprint": self.fingerprint,
            "prompts_sha256": self.prompts_sha256,
            "prompts": self.prompts,
        }
        unfinished = path.with_name(f"{path.name}.unfinished")
        save_file(tensors, unfinished, metadata={"calibration": json.dumps(about, sort_keys=True)})
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, not a calibration, or of another version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["calibration"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except FileNotFoundError:
            raise UsageError(f"no calibration file {path}; make one with `cryptomnesia calibrate`") from None
        except (SafetensorError, KeyError, OSError) as error:
            raise UsageError(f"{path} is not a calibration ({error}); make one with `cryptomnesia calibrate`") from None
        if about["format"] != FORMAT:
            raise UsageError(
                f"{path} has calibration format {about['format']}, this version reads {FORMAT}; make it anew"
            )
        moments = {
            norm.name: Moments(tensors[f"reference/{norm.name}/mean"], tensors[f"reference/{norm.name}/std"])
            for norm in fields(Reference)
        }
        null = {key.removeprefix("null/"): value for key, value in tensors.items() if key.startswith("null/")}
        return cls(about["fingerprint"], Reference(**moments), null, about["prompts_sha256"], about["prompts"])

    def _null(self, detector: str) -> Tensor:
        if detector not in self.null:
            raise UsageError(f"the calibration knows no {detector}; it has {', '.join(self.null)}")
        return self.null[detector]


def _flat(values: Fingerprint, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
