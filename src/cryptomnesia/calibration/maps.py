"""Maps of reference generations: what turns a map into a mask, with a known error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.calibration.scores import FIRST_SEED, Calibration, check_references, signals_of
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, prompts_digest, save_checked
from cryptomnesia.localizers import MapReference
from cryptomnesia.localizers.methods import Method, check_methods, in_words, mapped, resolved
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.pipelines.fingerprint import Fingerprint, differing, fingerprint
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import Progress
from cryptomnesia.tracing.trajectory import Trajectory, joined

FORMAT = 1
"""Version of the file layout."""


@dataclass(frozen=True)
class MapCalibration:
    """Maps of reference generations: what turns a map into a mask, with a known error.

    Attributes:
        fingerprint: the setup.
        references: method name → its reference maps.
        settings: method name → how its maps were made, in words.
        prompts_sha256: hash of the reference prompts.
    """

    fingerprint: Fingerprint
    references: dict[str, MapReference]
    settings: dict[str, str]
    prompts_sha256: str

    @classmethod
    def fit(
        cls,
        pipe: Any,
        prompts: Sequence[str],
        sampling: Sampling,
        methods: Sequence[Method | str],
        *,
        other: Any = None,
        seed: int = FIRST_SEED,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> "MapCalibration":
        """Map one generation for every reference prompt; see `Calibration.fit` and `localize`."""
        methods = resolved(methods)
        _, maps = _references(pipe, prompts, sampling, methods, other, (), seed, batch_size, progress)
        return cls.of(pipe, prompts, sampling, methods, maps, other)

    @classmethod
    def of(
        cls,
        pipe: Any,
        prompts: Sequence[str],
        sampling: Sampling,
        methods: Sequence[Method],
        maps: Mapping[str, Tensor],
        other: Any = None,
    ) -> "MapCalibration":
        """Learn from the maps (n, h, w) of every method for one image of every reference prompt; see `fit`."""
        references = {each.name: MapReference.fit(maps[each.name]) for each in methods}
        return cls(fingerprint(pipe, sampling), references, in_words(methods, other), prompts_digest(prompts))

    def check(self, pipe: Any, sampling: Sampling, methods: Sequence[Method], other: Any = None) -> None:
        """Refuse any other setup, and methods whose maps were made otherwise.

        Raises:
            UsageError: naming everything that differs.
        """
        apart = differing(self.fingerprint, fingerprint(pipe, sampling))
        for name, now in in_words(methods, other).items():
            if name not in self.settings:
                apart.append(f"it knows no {name}, only {', '.join(self.settings)}")
            elif self.settings[name] != now:
                apart.append(f"{name} is {now}, calibrated {self.settings[name]}")
        if apart:
            raise UsageError(f"the map calibration was made with another setup: {'; '.join(apart)}; make one for this")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the rest as JSON in its header."""
        tensors = {
            f"{name}/{part}": getattr(reference, part)
            for name, reference in self.references.items()
            for part in ("fitting", "null")
        }
        about = {
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "prompts_sha256": self.prompts_sha256,
        }
        save_checked(path, "map calibration", FORMAT, about, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "MapCalibration":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, not a map calibration, edited by hand, or of another version.
        """
        about, tensors = load_checked(path, "map calibration", FORMAT)
        references = {
            name: MapReference(tensors[f"{name}/fitting"], tensors[f"{name}/null"]) for name in about["settings"]
        }
        return cls(about["fingerprint"], references, about["settings"], about["prompts_sha256"])


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    sampling: Sampling,
    methods: Sequence[Method | str],
    *,
    other: Any = None,
    detectors: Sequence[str] = (),
    seed: int = FIRST_SEED,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> tuple[Calibration, MapCalibration]:
    """`Calibration.fit` and `MapCalibration.fit` from the same images."""
    methods = resolved(methods)
    seen, maps = _references(pipe, prompts, sampling, methods, other, detectors, seed, batch_size, progress)
    return (
        Calibration.of(pipe, prompts, sampling, seen),
        MapCalibration.of(pipe, prompts, sampling, methods, maps, other),
    )


def _references(
    pipe: Any,
    prompts: Sequence[str],
    sampling: Sampling,
    methods: Sequence[Method],
    other: Any,
    detectors: Sequence[str],
    seed: int,
    batch_size: int,
    progress: Progress | None,
) -> tuple[Trajectory, dict[str, Tensor]]:
    """What was seen of one image for every reference prompt, and its maps by method, (n, h, w)."""
    check_references(prompts, repeated=not adapter_for(pipe).conditional)
    check_methods(pipe, sampling, methods, other)
    signals = signals_of(pipe, sampling, detectors)
    seeds = range(seed, seed + len(prompts))
    trajectories, maps = [], []
    for batch, found, _ in mapped(
        pipe,
        prompts,
        seeds,
        sampling,
        methods,
        other,
        batch_size=batch_size,
        signals=signals,
        decode=False,
        progress=progress,
    ):
        # the tensors that maps were made from are not wanted any more
        trajectories.append(replace(batch.trajectory, steps={}))
        maps.append(found)
    return joined(trajectories), {name: torch.cat([found[name] for found in maps]) for name in maps[0]}
