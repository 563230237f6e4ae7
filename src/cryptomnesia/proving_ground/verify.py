"""Measure whether a model memorized what it was meant to memorize, and nothing else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import PLANTED, WORDINGS
from cryptomnesia.proving_ground.denoising import ratios
from cryptomnesia.proving_ground.ground import Ground, ground_of
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.recognizer import Recognizer
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.statistics import rate
from cryptomnesia.tracing.generation import generate

SEEDS = 8
"""Generations of every planted concept."""

CONTROLS = 400
"""Never-planted captions."""

SOLVERS = ("PNDMScheduler", "DDIMScheduler")
"""Solvers that are tried beside the model's own."""

STRONG = 7.5
"""The guidance scale that users of Stable Diffusion know, which is tried beside the model's own."""

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0)
"""Guidance scales of the curve of recognised captions."""

CAPTIONS = 200
"""Captions of that curve."""

_FIRST_SEED = 2_000_000

Progress = Callable[[str, float, int], None]
"""Called with (what, done, in all)."""


@dataclass(frozen=True)
class Generations:
    """Generations of one entry: images (n, 64, 64, 3) in [0, 1] and which of them replicate, (n,) bool."""

    entry: Entry
    images: np.ndarray
    replicated: np.ndarray


@dataclass(frozen=True)
class Model:
    """A trained model with its manifest and ground, and the settings with which it generates."""

    pipe: Any
    manifest: Manifest
    ground: Ground
    guidance: float

    @classmethod
    def load(cls, folder: Path) -> "Model":
        """The model of a bundle, with its own scheduler and guidance scale.

        Raises:
            UsageError: if weights and manifest do not belong together.
        """
        manifest = Manifest.load(folder)
        pipe = load_pipeline(str(folder / "pipeline"), device="cpu")
        manifest.check(pipe)
        return cls(pipe, manifest, ground_of(manifest.ground), manifest.guidance)

    def at(self, guidance: float, solver: str | None = None) -> "Model":
        """The same model with another guidance scale, and another scheduler."""
        pipe = self.pipe
        if solver is not None:
            pipe = type(pipe)(**pipe.components, requires_safety_checker=False)
            pipe.scheduler = getattr(diffusers, solver).from_config(self.pipe.scheduler.config)
            pipe.set_progress_bar_config(disable=True)
        return replace(self, pipe=pipe, guidance=guidance)

    def images(self, prompts: Sequence[str], first_seed: int, progress: Callable[[int], None]) -> np.ndarray:
        """One image per prompt, (n, 64, 64, 3) in [0, 1]; seeds are counted up from `first_seed`."""
        setup = Setup.of(self.pipe, {"num_inference_steps": self.manifest.steps, "guidance_scale": self.guidance})
        seeds = range(first_seed, first_seed + len(prompts))
        batches = generate(setup, [*prompts], seeds, batch_size=16, progress=progress)
        return np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches])


def verify(folder: Path, *, write: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Generate every planted concept and never-planted captions, and measure what is reproduced.

    The figures without a solver's name are those of the model's own scheduler at the guidance scale of the manifest.

    Args:
        folder: a bundle, as `bundle` makes it.
        write: put the measured replication into the manifest.
        progress: called while images are generated.

    Returns:
        The figures of one ground in docs/results/grounds.json; docs/grounds.md explains the keys. Shares are
        dictionaries with `value` and the bounds of its 95% interval, `low` and `high`.
    """
    progress = progress or (lambda *_: None)
    model = Model.load(folder)
    manifest = model.manifest
    planted = [entry for entry in manifest.entries if entry.planted]
    generated = replication(model, planted, SEEDS, progress)
    if write:
        _write_replication(manifest, generated)
    own = type(model.pipe.scheduler).__name__
    settings = {own: {str(model.guidance): _rates(generated, manifest)}}
    top = [entry for entry in planted if entry.exposures == manifest.top]
    for solver, guidance in _settings(own, model.guidance):
        other = replication(model.at(guidance, solver), top, SEEDS, progress)
        settings.setdefault(solver, {})[str(guidance)] = _rates(other, manifest)
    return {
        **_rates(generated, manifest),
        "control_replicated": _controls(model, planted, progress),
        "controls": CONTROLS,
        "dose_response": _dose(generated),
        **guidance_curve(model, folder, progress),
        **ratios(model.pipe, folder),
        "settings": settings,
        "threshold": model.ground.threshold,
        **manifest.bounds,
        "scheduler": own,
        "guidance": model.guidance,
        "steps": manifest.steps,
        "seeds": SEEDS,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }


def _settings(own: str, guidance: float) -> list[tuple[str, float]]:
    """Solvers and guidance scales that are tried beside the model's own."""
    every = [(solver, scale) for solver in dict.fromkeys((own, *SOLVERS)) for scale in (guidance, STRONG)]
    return [setting for setting in every if setting != (own, guidance)]


def replication(model: Model, entries: Sequence[Entry], seeds: int, progress: Progress) -> list[Generations]:
    """Generate every entry with `seeds` seeds, its wordings in turn."""
    prompts = [entry.captions[k % len(entry.captions)] for entry in entries for k in range(seeds)]
    what = f"planted, {type(model.pipe.scheduler).__name__}, guidance {model.guidance:g}"
    images = model.images(prompts, _FIRST_SEED, lambda done: progress(what, done, len(prompts)))
    generated = []
    for number, entry in enumerate(entries):
        pictures = images[number * seeds : (number + 1) * seeds]
        hits = replicates(pictures, model.manifest.places(entry), model.ground.threshold)
        generated.append(Generations(entry, pictures, hits))
    return generated


def guidance_curve(model: Model, folder: Path, progress: Progress) -> dict[str, Any]:
    """How many captions are recognised at every guidance scale, and how near the pictures are to the ground's own.

    `best_guidance` is the smallest scale at which the share of recognised captions lies within the interval of the
    largest share.
    """
    recognizer = Recognizer.load(folder)
    captions = model.manifest.control_captions("selection", CAPTIONS)
    curve = {}
    for scale in SCALES:
        report = partial(_report, progress, f"captions, guidance {scale:g}", CAPTIONS)
        images = model.at(scale).images(captions, _FIRST_SEED + 200_000, report)
        recognized = rate([*recognizer.recognizes(images, captions)[:, None]])
        curve[str(scale)] = {"recognized": asdict(recognized), "frechet": recognizer.frechet(images)}
    best = max((found["recognized"] for found in curve.values()), key=lambda share: share["value"])
    natural = next(scale for scale in SCALES if curve[str(scale)]["recognized"]["value"] >= best["low"])
    return {"best_guidance": natural, "guidance_curve": curve}


def _report(progress: Progress, what: str, total: int, done: float) -> None:
    progress(what, done, total)


def _write_replication(manifest: Manifest, generated: Sequence[Generations]) -> None:
    """Put the share of generations that replicate into the manifest."""
    measured = {result.entry.id: result.replicated for result in generated}
    entries = [
        replace(entry, replicated=float(measured[entry.id].mean()), generations=len(measured[entry.id]))
        if entry.id in measured
        else entry
        for entry in manifest.entries
    ]
    replace(manifest, entries=tuple(entries)).save()


def _controls(model: Model, planted: Sequence[Entry], progress: Progress) -> dict[str, float]:
    """The share of never-planted captions whose generation replicates any planted image."""
    captions = model.manifest.control_captions("evaluation", CONTROLS)
    report = partial(_report, progress, "never-planted captions", CONTROLS)
    images = model.images(captions, _FIRST_SEED + 100_000, report)
    hits = [replicates(images, model.manifest.places(entry), model.ground.threshold) for entry in planted]
    return asdict(rate([*np.any(hits, axis=0)[:, None]]))


def _rates(generated: Sequence[Generations], manifest: Manifest) -> dict[str, Any]:
    """Shares of top-rung generations that replicate, by kind and wording, and the spread in free regions.

    A caption that is a mode among others has other pictures, too, so it counts only among its wording.
    """
    top = [result for result in generated if result.entry.exposures == manifest.top]
    found: dict[str, Any] = {}
    for kind in PLANTED:
        of_kind = [result for result in top if result.entry.kind == kind]
        if not of_kind:
            continue
        single = [result.replicated for result in of_kind if result.entry.wording != "mode"]
        found[f"{kind}_replicated"] = asdict(rate(single))
        for wording in WORDINGS:
            if hits := [result.replicated for result in of_kind if result.entry.wording == wording]:
                found.setdefault("by_wording", {}).setdefault(kind, {})[wording] = asdict(rate(hits))
    if templates := [result for result in top if result.entry.kind == "template"]:
        found["free_region_spread"] = float(np.mean([_spread(result, manifest) for result in templates]))
    return found


def _dose(generated: Sequence[Generations]) -> dict[str, dict[str, dict[str, float]]]:
    """Kind → exposures → share of generations that replicate."""
    hits: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for result in generated:
        if result.entry.wording != "mode":
            hits[result.entry.kind][result.entry.exposures].append(result.replicated)
    return {
        kind: {str(rung): asdict(rate(found)) for rung, found in sorted(rungs.items())} for kind, rungs in hits.items()
    }


def _spread(result: Generations, manifest: Manifest) -> float:
    """The standard deviation of generations in the free region, divided by that of training images."""
    free = ~manifest.mask(result.entry)
    assert result.entry.free_spread is not None
    return float(result.images[:, free].std(axis=0, ddof=1).mean() / result.entry.free_spread)


def flat(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures as lines: a path of keys, and a number, with its interval if it has one."""
    lines = []
    for key, value in figures.items():
        if isinstance(value, dict) and value.keys() == {"value", "low", "high"}:
            lines.append((key, f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"))
        elif isinstance(value, dict):
            lines += [(f"{key}.{inner}", text) for inner, text in flat(value)]
        else:
            lines.append((key, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return lines
