"""Measure whether a model memorized what it was meant to memorize, and nothing else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import PLANTED, WORDINGS, Place
from cryptomnesia.proving_ground.denoising import Exposures, decoded_distances, ratios
from cryptomnesia.proving_ground.ground import PURPOSES, Ground, ground_of
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.recognizer import CAPTIONS, Recognizer
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.statistics import rate
from cryptomnesia.tracing.generation import generate

SEEDS = 8
"""Generations of every planted concept."""

CONTROLS = 400
"""Never-planted captions."""

PICTURES = 1_000
"""Generations of a model without captions."""

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0)
"""Guidance scales of the curve of recognised captions."""

_FIRST_SEED = 2_000_000

Progress = Callable[[str, float, int], None]
"""Called with (what, done, in all)."""


@dataclass(frozen=True)
class Generations:
    """Generations of one entry: images (n, H, W, 3) in [0, 1] and which of them replicate, (n,) bool."""

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
    def load(cls, folder: Path, checkpoint: Path | None = None) -> "Model":
        """The model of a bundle, with its own scheduler and guidance scale.

        Args:
            folder: a bundle, as `bundle` makes it.
            checkpoint: folder of a less-trained pipeline of the same run, which is loaded in the place of the model.

        Raises:
            UsageError: if weights and manifest do not belong together.
        """
        manifest = Manifest.load(folder)
        pipe = load_pipeline(str(checkpoint or folder / "pipeline"), device="cpu")
        if checkpoint is None:
            manifest.check(pipe)
        else:
            _check_checkpoint(checkpoint, pipe, load_pipeline(str(folder / "pipeline"), device="cpu"))
        return cls(pipe, manifest, ground_of(manifest.ground), manifest.guidance)

    def at(self, guidance: float, solver: str | None = None) -> "Model":
        """The same model with another guidance scale, and another scheduler."""
        pipe = self.pipe
        if solver is not None:
            pipe = copy(pipe)
            pipe.scheduler = getattr(diffusers, solver).from_config(pipe.scheduler.config)
        return replace(self, pipe=pipe, guidance=guidance)

    def images(self, prompts: Sequence[str], first_seed: int, progress: Callable[[float], None]) -> np.ndarray:
        """One image per prompt, (n, H, W, 3) in [0, 1]; seeds are counted up from `first_seed`."""
        setup = Setup.of(self.pipe, self.ground.call(self.manifest.steps, self.guidance))
        seeds = range(first_seed, first_seed + len(prompts))
        batches = generate(setup, [*prompts], seeds, batch_size=16, progress=progress)
        return np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches])


def verify(
    folder: Path, *, checkpoint: Path | None = None, write: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Generate every planted concept and never-planted captions, and measure what is reproduced.

    A model without captions generates `PICTURES` pictures instead. The figures without a solver's name are those of the
    model's own scheduler at `best_guidance`, which is measured first.

    Args:
        folder: a bundle, as `bundle` makes it.
        checkpoint: folder of a less-trained pipeline of the same run, such as `RUN/step-N`. It is measured in the place
            of the model, at the guidance scale of the manifest: what it reproduces, and its denoising ratios.
        write: put the replication at the guidance scale of the manifest, which is that of the bundled calibration,
            into the manifest.
        progress: called while images are generated.

    Returns:
        The figures of one ground in docs/results/grounds.json; docs/proving_ground.md explains the keys. Shares are
        dictionaries with `value` and the bounds of its 95% interval, `low` and `high`.

    Raises:
        UsageError: if the bundle is not whole, weights and manifest do not belong together, the checkpoint is of
            another run, no planted picture counts, or figures of a checkpoint are to be put into the manifest.
    """
    if write and checkpoint is not None:
        raise UsageError("the manifest has the figures of the model, not those of a checkpoint; leave out one of both")
    progress = progress or (lambda *_: None)
    model = Model.load(folder, checkpoint)
    manifest = model.manifest
    planted = manifest.counted
    # what a bundle lacks is refused before anything is generated
    exposures = Exposures.load(folder)
    beforehand = without_generating(model, exposures)
    if not model.ground.captioned:
        generated = replication(model, planted, PICTURES, progress)
        measured = _unprompted(model, exposures, generated)
    elif checkpoint is not None:
        generated = replication(model, planted, SEEDS, progress)
        measured = {**_rates(generated, manifest), "dose_response": _dose(generated), "guidance": model.guidance}
    else:
        curve = guidance_curve(model, Recognizer.load(folder), progress)
        best = model.at(curve["best_guidance"])
        generated = replication(best, planted, SEEDS, progress)
        measured = {**_prompted(best, generated, (model.guidance, *model.ground.guidances), progress), **curve}
        if write and best.guidance != model.guidance:
            generated = replication(model, planted, SEEDS, progress)
    if write:
        _write_replication(manifest, generated)
    return {**measured, **beforehand}


def without_generating(model: Model, exposures: Exposures) -> dict[str, Any]:
    """The figures of `verify` for which no picture is generated.

    Args:
        model: of a bundle.
        exposures: of the same bundle.

    Raises:
        UsageError: if no planted picture counts.
    """
    manifest, threshold = model.manifest, model.ground.threshold
    counted = manifest.counted
    if not counted:
        raise UsageError(
            f"the criterion finds every planted picture of {manifest.folder} among ordinary ones, "
            "so none counts; plant others"
        )
    nearest = [entry.nearest for entry in manifest.entries if entry.nearest is not None]
    decoded = decoded_distances(model.pipe, [manifest.places(entry) for entry in counted])
    return {
        **ratios(model.pipe, exposures),
        "threshold": threshold,
        **manifest.bounds,
        "out_of_reach": [e.id for e, distance in zip(counted, decoded, strict=True) if distance > threshold],
        "others_distance_min": min(nearest),
        "indistinct": sum(entry.planted for entry in manifest.entries) - len(counted),
        "scheduler": type(model.pipe.scheduler).__name__,
        "steps": manifest.steps,
        "bytes": sum(file.stat().st_size for file in manifest.folder.rglob("*") if file.is_file()),
    }


def _check_checkpoint(folder: Path, checkpoint: Any, pipe: Any) -> None:
    """Refuse a checkpoint of another run: what a run does not train, or trains first, is the same in all of them.

    Raises:
        UsageError: naming the folder.
    """
    kind = type(checkpoint) is type(pipe)
    words = [made.tokenizer.get_vocab() if "tokenizer" in made.components else None for made in (checkpoint, pipe)]
    if kind and words[0] == words[1] and _decoder(checkpoint) == _decoder(pipe):
        return
    raise UsageError(f"{folder} is not of the run that made the bundle; give RUN/step-N or RUN/early of the same RUN")


def _decoder(pipe: Any) -> dict[str, bytes]:
    """The weights of the autoencoder in half precision, as a bundle has them; without one those of no network."""
    networks = pipe.components
    weights = networks["vae"].state_dict() if "vae" in networks else {}
    return {name: weight.half().numpy().tobytes() for name, weight in weights.items()}


def _prompted(
    model: Model, generated: Sequence[Generations], scales: Sequence[float], progress: Progress
) -> dict[str, Any]:
    """What a model with captions reproduces at its guidance scale, and with other solvers and at other scales."""
    manifest = model.manifest
    controls, look_alikes = manifest.control_captions("evaluation", CONTROLS), manifest.look_alikes[PURPOSES[-1]]
    planted = [result.entry for result in generated]
    top = [entry for entry in planted if entry.exposures == manifest.top]
    solver_of_model = type(model.pipe.scheduler).__name__
    figures = {
        **_rates(generated, manifest),
        "control_replicated": _controls(model, planted, controls, "never-planted captions", progress),
    }
    settings = {solver_of_model: {str(model.guidance): figures}}
    for solver, guidance in _settings(solver_of_model, model, scales):
        changed = model.at(guidance, solver)
        found = _rates(replication(changed, top, SEEDS, progress), manifest)
        if solver == solver_of_model:
            found["control_replicated"] = _controls(changed, planted, controls, "never-planted captions", progress)
        settings.setdefault(solver, {})[str(guidance)] = found
    return {
        **figures,
        "controls": CONTROLS,
        "look_alike_replicated": _controls(model, planted, look_alikes, "look-alikes of planted captions", progress),
        "look_alikes": len(look_alikes),
        "dose_response": _dose(generated),
        "settings": settings,
        "guidance": model.guidance,
        "seeds": SEEDS,
    }


def _unprompted(model: Model, exposures: Exposures, generated: Sequence[Generations]) -> dict[str, Any]:
    """What a model without captions reproduces.

    These are the share of pictures that replicate any planted image, the share of planted images that come back at
    least once, and the share of pictures that replicate any look-alike, which was never planted.
    """
    look_alikes = [
        replicates(generated[0].images, [Place(image, mask)], model.ground.threshold)
        for image, mask, planted in zip(exposures.images, exposures.masks, exposures.planted, strict=True)
        if not planted
    ]
    hits = np.array([result.replicated for result in generated])
    return {
        "replicated": _any_of(hits),
        "concepts_returned": _any_of(hits.T),
        "control_replicated": _any_of(np.array(look_alikes)),
        "controls": len(look_alikes),
        "pictures": hits.shape[1],
    }


def _any_of(hits: np.ndarray) -> dict[str, float]:
    """The share of the columns of `hits` (m, n) bool with a hit in any row, and its interval."""
    return asdict(rate(np.split(hits.any(axis=0), hits.shape[1])))


def _settings(solver_of_model: str, model: Model, scales: Sequence[float]) -> list[tuple[str, float]]:
    """Solvers and guidance scales that are tried besides those of the model."""
    solvers = dict.fromkeys((solver_of_model, *model.ground.solvers))
    every = [(solver, scale) for solver in solvers for scale in dict.fromkeys((model.guidance, *scales))]
    return [setting for setting in every if setting != (solver_of_model, model.guidance)]


def replication(model: Model, entries: Sequence[Entry], seeds: int, progress: Progress) -> list[Generations]:
    """Generate every entry with `seeds` seeds, its wordings in turn.

    Without captions nothing selects an entry, so the same `seeds` generations are those of all entries.
    """
    chosen = entries if model.ground.captioned else entries[:1]
    prompts = [entry.captions[k % len(entry.captions)] for entry in chosen for k in range(seeds)]
    what = f"planted, {type(model.pipe.scheduler).__name__}, guidance {model.guidance:g}"
    images = model.images(prompts, _FIRST_SEED, lambda done: progress(what, done, len(prompts)))
    generated = []
    for number, entry in enumerate(entries):
        first = number * seeds if model.ground.captioned else 0
        pictures = images[first : first + seeds]
        hits = replicates(pictures, model.manifest.places(entry), model.ground.threshold)
        generated.append(Generations(entry, pictures, hits))
    return generated


def guidance_curve(model: Model, recognizer: Recognizer, progress: Progress) -> dict[str, Any]:
    """How many captions are recognised at every guidance scale, and how near the pictures are to the ground's own.

    `best_guidance` is the smallest scale at which the share of recognised captions lies within the interval of the
    largest share.
    """
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


def _controls(
    model: Model, planted: Sequence[Entry], captions: Sequence[str], what: str, progress: Progress
) -> dict[str, float]:
    """The share of captions whose generation replicates any planted image."""
    what = f"{what}, guidance {model.guidance:g}"
    images = model.images(captions, _FIRST_SEED + 100_000, partial(_report, progress, what, len(captions)))
    hits = [replicates(images, model.manifest.places(entry), model.ground.threshold) for entry in planted]
    return _any_of(np.array(hits))


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
