"""From prompts to maps: generate, and say for every picture where it is memorized."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
    Mask,
    Watched,
    empty_caption,
    end_positions,
)
from cryptomnesia.localizers.baseline import check_checkpoint, reading
from cryptomnesia.localizers.bright_ending import cross_attention
from cryptomnesia.sampling import Batch, Progress, generate
from cryptomnesia.settings import Sampling

FORMAT = 1
"""Version of the file layout of `MapCalibration`."""

CHECKPOINT = "-checkpoint"
"""Behind a method's name: against the less-trained checkpoint."""


Compared = Literal["nothing", "run", "empty", "checkpoint"]


@dataclass(frozen=True)
class Method:
    """One kind of map: a localizer, and what it is compared with.

    Attributes:
        name: the localizer's, with `-checkpoint` behind it where the baseline is a checkpoint.
        localizer: that makes the map.
        baseline: `nothing`, if the localizer subtracts none; `run`, the unconditional branch of the generation;
            `empty`, one more evaluation with an empty caption; `checkpoint`, a less-trained model.
    """

    name: str
    localizer: Localizer
    baseline: Compared


@dataclass(frozen=True)
class Located:
    """A generated picture and where it is memorized.

    Attributes:
        prompt: its caption.
        seed: its seed.
        image: (3, H, W) in [0, 1].
        maps: method name → (h, w) at latent resolution, in the method's units, ≥ 0.
        errors: method name → standard error of the map, (h, w), before its negative values were cut; only of methods
            that are estimated, NaN where a single set of probes tells nothing of it.
        masks: method name → what the map says; empty without a calibration.
    """

    prompt: str
    seed: int
    image: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)


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
    made = kind(step)
    if estimator is not None and isinstance(made, CurvatureDifference | Curvature):
        made = replace(made, estimator=estimator)
    compared: Compared = (
        "nothing" if not kind.differs else "checkpoint" if plain != name else "empty" if empty else "run"
    )
    return Method(name, made, compared)


def localize(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    methods: Sequence[Method | str],
    *,
    other: Any = None,
    calibration: "MapCalibration | None" = None,
    rate: float = 0.01,
    smooth: float = 0.0,
    smallest: int = 1,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[Located]:
    """Generate `prompts[i]` with `seeds[i]` and map every picture, all methods from the one generation.

    An image's probes come from its seed, so that its maps do not depend on the batch it was made in.

    Args:
        pipe: a pipeline of a known family.
        prompts: one per image.
        seeds: one per image.
        sampling: the settings.
        methods: made by `method`, or names that it knows.
        other: a pipeline around a less-trained checkpoint, for methods that compare with one.
        calibration: of this setup, makes masks of the maps; any other is refused.
        rate: share of the pixels of reference pictures above a mask's threshold.
        smooth: standard deviation of a Gaussian blur before the threshold, in map pixels.
        smallest: drop regions of fewer map pixels.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.

    Raises:
        UsageError: at once, before anything is generated, if a method lacks what it needs or the calibration does not
            fit.
    """
    methods = _made(methods)
    check_methods(pipe, sampling, methods, other)
    references: Mapping[str, MapReference] = {}
    if calibration is not None:
        calibration.check(pipe, sampling, methods, other)
        references = {each.name: calibration.references[each.name] for each in methods}
        for reference in references.values():
            reference.threshold(rate, smooth)
    batches = _mapped(
        pipe, prompts, seeds, sampling, methods, other, batch_size=batch_size, decode=True, progress=progress
    )
    return _located(batches, references, rate=rate, smooth=smooth, smallest=smallest)


_Mapped = tuple[Batch, dict[str, Tensor], dict[str, Tensor]]
"""A batch, its maps by method, and the standard errors of those that are estimated, (B, h, w) on the CPU."""


def _located(
    batches: Iterator[_Mapped],
    references: Mapping[str, MapReference],
    *,
    rate: float,
    smooth: float,
    smallest: int,
) -> Iterator[Located]:
    """Image by image, with masks where there are references."""
    for batch, maps, errors in batches:
        masks = {
            name: reference.mask(maps[name], rate=rate, smooth=smooth, smallest=smallest)
            for name, reference in references.items()
        }
        for row, prompt in enumerate(batch.prompts):
            yield Located(
                prompt,
                batch.seeds[row],
                batch.images[row],
                {name: values[row] for name, values in maps.items()},
                {name: values[row] for name, values in errors.items()},
                {name: mask.image(row) for name, mask in masks.items()},
            )


def _mapped(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    methods: Sequence[Method],
    other: Any,
    *,
    batch_size: int,
    decode: bool,
    progress: Progress | None,
) -> Iterator[_Mapped]:
    """Generate, and map every batch."""
    view = adapter_for(pipe).denoiser()
    for batch in generate(
        pipe,
        prompts,
        seeds,
        sampling,
        batch_size=batch_size,
        keep={each.localizer.step for each in methods},
        decode=decode,
        progress=progress,
    ):
        attention = any(isinstance(each.localizer, BrightEnding) for each in methods)
        ends = end_positions(pipe, batch.prompts) if attention else None
        asked: dict[str, Baseline] = {}
        answered: dict[tuple[str, int], Baseline] = {}
        maps, errors = {}, {}
        for each in methods:
            step, baseline = batch.trajectory.step(each.localizer.step), None
            if each.baseline in ("empty", "checkpoint"):
                if each.baseline not in asked:
                    asked[each.baseline] = (
                        empty_caption(pipe, len(batch.prompts), sampling)
                        if each.baseline == "empty"
                        else reading(other, batch.prompts, sampling)
                    )
                # methods that look at the same evaluation share the baseline's
                key = each.baseline, step.index
                baseline = answered[key] = answered.get(key) or asked[each.baseline].at(step)
            watched = Watched(batch.trajectory, view, baseline, ends, batch.seeds)
            if isinstance(each.localizer, CurvatureDifference | Curvature):
                found = each.localizer.estimate(watched)
                maps[each.name], errors[each.name] = found.value.relu().cpu(), found.error.cpu()
            else:
                maps[each.name] = each.localizer.map(watched).cpu()
        yield batch, maps, errors


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
        if each.baseline == "run" and not adapter.guided_in(sampling):
            raise UsageError(
                f"{each.name} needs the unconditional branch, and with these settings {type(pipe).__name__} has none; "
                "give guidance above 1 to a model that is not distilled, a checkpoint, or ask for an empty caption"
            )
        if each.baseline == "checkpoint" and other is None:
            raise UsageError(f"{each.name} needs a less-trained checkpoint of the model; give one as the baseline")
        if each.baseline == "empty" and not adapter.conditional:
            raise UsageError(f"a {type(pipe).__name__} has no captions, and so no empty one; give a checkpoint")
    if any(each.baseline == "checkpoint" for each in methods):
        check_checkpoint(pipe, other)


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
        check_references(prompts, repeated=not adapter_for(pipe).conditional)
        methods = _made(methods)
        check_methods(pipe, sampling, methods, other)
        seeds = range(seed, seed + len(prompts))
        made = _mapped(
            pipe, prompts, seeds, sampling, methods, other, batch_size=batch_size, decode=False, progress=progress
        )
        maps = [found for _, found, _ in made]
        references = {each.name: MapReference.fit(torch.cat([found[each.name] for found in maps])) for each in methods}
        settings = _in_words(methods, other)
        return cls(fingerprint(pipe, sampling), references, settings, prompts_digest(prompts))

    def check(self, pipe: Any, sampling: Sampling, methods: Sequence[Method], other: Any = None) -> None:
        """Refuse any other setup, and methods whose maps were made otherwise.

        Raises:
            UsageError: naming everything that differs.
        """
        apart = differing(self.fingerprint, fingerprint(pipe, sampling))
        for name, now in _in_words(methods, other).items():
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


def _made(methods: Sequence[Method | str]) -> list[Method]:
    return [method(each) if isinstance(each, str) else each for each in methods]


def _in_words(methods: Sequence[Method], other: Any) -> dict[str, str]:
    """Method name → everything that changes its map."""
    against = {each.baseline: each.baseline for each in methods}
    if "checkpoint" in against:
        against["checkpoint"] += f" {weights_digest(other)[:12]}"
    said = {}
    for each in methods:
        made = each.localizer
        words = [f"evaluation {made.step}", f"against {against[each.baseline]}"]
        if isinstance(made, CurvatureDifference | Curvature):
            how = made.estimator
            probes = f"{how.probes} {how.design} probes of {how.group}"
            words += [probes, f"{how.engine} with steps of {how.step:g}", f"seed {how.seed}"]
            if how.wanted is not None:
                words.append(f"until {how.wanted:g}")
        said[each.name] = ", ".join(words)
    return said
