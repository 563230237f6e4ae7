"""From prompts to maps: generate, and say for every picture where it is memorized."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.adapters import adapter_for
from cryptomnesia.calibrate import (
    FIRST_SEED,
    Fingerprint,
    check_references,
    differing,
    fingerprint,
    weights_digest,
)
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, prompts_digest, save_checked
from cryptomnesia.localizers import (
    LOCALIZERS,
    Baseline,
    BrightEnding,
    Curvature,
    CurvatureDifference,
    DiagonalEstimator,
    Localizer,
    MapReference,
    Watched,
    checkpoint,
    empty_caption,
    end_positions,
)
from cryptomnesia.localizers.baseline import check_checkpoint
from cryptomnesia.localizers.bright_ending import cross_attention
from cryptomnesia.sampling import Progress, generate
from cryptomnesia.settings import Sampling

FORMAT = 1
"""Version of the file layout of `MapCalibration`."""

CHECKPOINT = "-checkpoint"
"""Behind a method's name: against the less-trained checkpoint."""


@dataclass(frozen=True)
class Method:
    """One kind of map: a localizer, and what it is compared with.

    Attributes:
        name: the localizer's, with `-checkpoint` behind it where the baseline is a checkpoint.
        localizer: that makes the map.
        baseline: `run`, the unconditional branch of the generation; `empty`, one more evaluation with an empty
            caption; `checkpoint`, a less-trained model.
    """

    name: str
    localizer: Localizer
    baseline: str


@dataclass(frozen=True)
class Located:
    """A generated picture and where it is memorized.

    Attributes:
        prompt: its caption.
        seed: its seed.
        image: (3, H, W) in [0, 1].
        maps: method name → (h, w) at latent resolution, in the method's units, ≥ 0.
    """

    prompt: str
    seed: int
    image: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)


def method(name: str, *, step: int = -1, estimator: DiagonalEstimator | None = None, empty: bool = False) -> Method:
    """The method called `name`, one of `LOCALIZERS`, or one that takes a baseline with `-checkpoint` behind it.

    Args:
        name: for instance `curvature-difference-checkpoint`.
        step: the evaluation that is looked at; negative numbers count from the end.
        estimator: for the methods that need one.
        empty: compare with an empty caption rather than with the run's own unconditional branch.

    Raises:
        UsageError: for an unknown name.
    """
    plain = name.removesuffix(CHECKPOINT)
    kind = LOCALIZERS.get(plain)
    if kind is None or (plain != name and not kind.differs):
        known = [*LOCALIZERS, *(f"{each}{CHECKPOINT}" for each, made in LOCALIZERS.items() if made.differs)]
        raise UsageError(f"got the unknown map {name!r}; known are {', '.join(known)}")
    settings: dict[str, Any] = {"step": step}
    if estimator is not None and "estimator" in kind.__dataclass_fields__:
        settings["estimator"] = estimator
    return Method(name, kind(**settings), "checkpoint" if plain != name else "empty" if empty else "run")


def localize(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    methods: Sequence[Method],
    *,
    other: Any = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[Located]:
    """Generate `prompts[i]` with `seeds[i]` and map every picture, all methods from the one generation.

    Args:
        pipe: a pipeline of a known family.
        prompts: one per image.
        seeds: one per image.
        sampling: the settings.
        methods: made by `method`.
        other: a pipeline around a less-trained checkpoint, for methods that compare with one.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.

    Raises:
        UsageError: before anything is generated, if a method lacks what it needs.
    """
    check_methods(pipe, sampling, methods, other)
    keep = sorted({each.localizer.step for each in methods})
    view = adapter_for(pipe).denoiser()
    for batch in generate(pipe, prompts, seeds, sampling, batch_size=batch_size, keep=keep, progress=progress):
        baselines: dict[str, Baseline | None] = {"run": None}
        for wanted in {each.baseline for each in methods if each.localizer.differs} - {"run"}:
            baselines[wanted] = (
                empty_caption(pipe, len(batch.prompts), sampling)
                if wanted == "empty"
                else checkpoint(pipe, other, batch.prompts, sampling)
            )
        attention = any(isinstance(each.localizer, BrightEnding) for each in methods)
        ends = end_positions(pipe, batch.prompts) if attention else None
        maps = {
            each.name: each.localizer.map(Watched(batch.trajectory, view, baselines.get(each.baseline), ends)).cpu()
            for each in methods
        }
        for row, (prompt, seed) in enumerate(zip(batch.prompts, batch.seeds, strict=True)):
            yield Located(prompt, seed, batch.images[row], {name: values[row] for name, values in maps.items()})


def check_methods(pipe: Any, sampling: Sampling, methods: Sequence[Method], other: Any = None) -> None:
    """See that every method has what it needs; arguments as for `localize`.

    Raises:
        UsageError: saying what is missing.
    """
    adapter = adapter_for(pipe)
    if not methods:
        raise UsageError(f"got no map to make; known are {', '.join(LOCALIZERS)}")
    names = [each.name for each in methods]
    if len(set(names)) < len(names):
        raise UsageError(f"got the maps {', '.join(names)}; give every map once, steps one after the other")
    for each in methods:
        if isinstance(each.localizer, BrightEnding):
            if not adapter.conditional:
                raise UsageError(
                    f"a {type(pipe).__name__} has no captions to attend to; use another map than {each.name}"
                )
            cross_attention(adapter.module)
        if not each.localizer.differs:
            continue
        if each.baseline == "run" and not adapter.guided_in(sampling):
            raise UsageError(
                f"{each.name} needs the unconditional branch, and with these settings {type(pipe).__name__} has none; "
                "give guidance above 1 to a model that is not distilled, a checkpoint, or ask for an empty caption"
            )
        if each.baseline == "checkpoint":
            if other is None:
                raise UsageError(f"{each.name} needs a less-trained checkpoint of the model; give one as the baseline")
            check_checkpoint(pipe, other)
        if each.baseline == "empty" and not adapter.conditional:
            raise UsageError(f"a {type(pipe).__name__} has no captions, and so no empty one; give a checkpoint")


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
        methods: Sequence[Method],
        *,
        other: Any = None,
        seed: int = FIRST_SEED,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> "MapCalibration":
        """Map one generation for every reference prompt; see `Calibration.fit` and `localize`."""
        check_references(prompts, repeated=not adapter_for(pipe).conditional)
        seeds = range(seed, seed + len(prompts))
        found = localize(pipe, prompts, seeds, sampling, methods, other=other, batch_size=batch_size, progress=progress)
        maps = [one.maps for one in found]
        references = {each.name: MapReference.fit(torch.stack([one[each.name] for one in maps])) for each in methods}
        settings = {each.name: _in_words(each, other) for each in methods}
        return cls(fingerprint(pipe, sampling), references, settings, prompts_digest(prompts))

    def check(self, pipe: Any, sampling: Sampling, methods: Sequence[Method], other: Any = None) -> None:
        """Refuse any other setup, and methods whose maps were made otherwise.

        Raises:
            UsageError: naming everything that differs.
        """
        apart = differing(self.fingerprint, fingerprint(pipe, sampling))
        for each in methods:
            if each.name not in self.settings:
                apart.append(f"it knows no {each.name}, only {', '.join(self.settings)}")
            elif self.settings[each.name] != (now := _in_words(each, other)):
                apart.append(f"{each.name} is {now}, calibrated {self.settings[each.name]}")
        if apart:
            raise UsageError(f"the map calibration was made with another setup: {'; '.join(apart)}; make one for this")

    def save(self, path: Path) -> None:
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
    def load(cls, path: Path) -> "MapCalibration":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, not a map calibration, edited by hand, or of another version.
        """
        about, tensors = load_checked(path, "map calibration", FORMAT)
        references = {
            name: MapReference(tensors[f"{name}/fitting"], tensors[f"{name}/null"]) for name in about["settings"]
        }
        return cls(about["fingerprint"], references, about["settings"], about["prompts_sha256"])


def _in_words(each: Method, other: Any) -> str:
    """Everything that changes the method's map."""
    made = each.localizer
    words = [f"evaluation {made.step}", f"against {each.baseline}"]
    if each.baseline == "checkpoint":
        words[-1] += f" {weights_digest(other)[:12]}"
    if isinstance(made, CurvatureDifference | Curvature):
        how = made.estimator
        words.append(f"{how.probes} {how.design} probes of {how.group}, {how.engine}, seed {how.seed}")
        if how.wanted is not None:
            words.append(f"until {how.wanted:g}")
    return ", ".join(words)
