"""Measure whether the bundled model memorized what it was meant to memorize, and nothing else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.pipelines.schedule import level_at
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.bundle import control_captions
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.planted import TOP_RUNG, Concept, plant
from cryptomnesia.proving_ground.replication import THRESHOLD, replicates, tiled_distance
from cryptomnesia.proving_ground.scenes import Draws, Scene
from cryptomnesia.statistics import clustered
from cryptomnesia.tracing.generation import generate

SEEDS = 8
"""Generations of every planted concept."""

CONTROLS = 200
"""Never-planted captions."""

_FIRST_SEED = 2_000_000
_LEVELS = range(50, 1000, 100)
"""Timesteps at which the denoising error is measured."""

Progress = Callable[[str, float, int], None]
"""Called with (what, done, in all)."""


@dataclass(frozen=True)
class Generations:
    """Generations of one entry: images (n, 64, 64, 3) in [0, 1] and which of them replicate, (n,) bool."""

    entry: Entry
    images: np.ndarray
    replicated: np.ndarray


def verify(folder: Path, *, write: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Generate every planted concept and never-planted captions, and measure what is reproduced.

    Pictures are made with the model's own scheduler, and with the steps and the guidance scale of the manifest.

    Args:
        folder: a bundle, as `bundle` makes it.
        write: put the measured replication into the manifest.
        progress: called while images are generated.

    Returns:
        The figures of docs/results/proving_ground.json; keys are explained in docs/proving_ground.md.
    """
    progress = progress or (lambda *_: None)
    manifest = Manifest.load(folder)
    pipe = load_pipeline(str(folder / "pipeline"), device="cpu")
    manifest.check(pipe)
    concepts = plant(manifest.seed)
    planted = [entry for entry in manifest.entries if entry.planted]
    generated = replication(pipe, manifest, planted, SEEDS, progress)
    controls = _controls(pipe, manifest, concepts, planted, progress)
    if write:
        _write_replication(manifest, generated)
    return {
        **_rates(generated, concepts),
        "control_replicated": float(np.mean(controls)),
        "controls": len(controls),
        **_denoising(pipe, [c for c in concepts if c.planted and c.exposures == TOP_RUNG], manifest.seed),
        "threshold": THRESHOLD,
        **_bounds(pipe, [c for c in concepts if c.planted], manifest.seed),
        "scheduler": type(pipe.scheduler).__name__,
        "guidance": manifest.guidance,
        "steps": manifest.steps,
        "seeds": SEEDS,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }


def replication(
    pipe: Any, manifest: Manifest, entries: Sequence[Entry], seeds: int, progress: Progress
) -> list[Generations]:
    """Generate every entry with `seeds` seeds, its wordings in turn."""
    prompts = [entry.captions[k % len(entry.captions)] for entry in entries for k in range(seeds)]
    images = _images(pipe, manifest, prompts, _FIRST_SEED, "planted concepts", progress)
    generated = []
    for number, entry in enumerate(entries):
        pictures = images[number * seeds : (number + 1) * seeds]
        hits = replicates(pictures, manifest.image(entry), manifest.mask(entry))
        generated.append(Generations(entry, pictures, hits))
    return generated


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


def _images(
    pipe: Any, manifest: Manifest, prompts: list[str], first_seed: int, what: str, progress: Progress
) -> np.ndarray:
    """One image per prompt, (n, 64, 64, 3) in [0, 1]; seeds are counted up from `first_seed`."""
    setup = Setup.of(pipe, {"num_inference_steps": manifest.steps, "guidance_scale": manifest.guidance})
    batches = generate(
        setup,
        prompts,
        range(first_seed, first_seed + len(prompts)),
        batch_size=16,
        progress=lambda done: progress(what, done, len(prompts)),
    )
    return np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches])


def _controls(
    pipe: Any, manifest: Manifest, concepts: tuple[Concept, ...], planted: Sequence[Entry], progress: Progress
) -> np.ndarray:
    """For every never-planted caption whether its generation replicates any planted image, (n,) bool."""
    captions = control_captions("evaluation", CONTROLS, concepts, manifest.seed)
    images = _images(pipe, manifest, captions, _FIRST_SEED + 100_000, "never-planted captions", progress)
    hits = [replicates(images, manifest.image(entry), manifest.mask(entry)) for entry in planted]
    return np.any(hits, axis=0)


def _rates(generated: list[Generations], concepts: tuple[Concept, ...]) -> dict[str, Any]:
    """Shares of generations that replicate, by rung and kind, and the spread in the free regions of templates."""
    rungs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in generated:
        rungs[str(result.entry.exposures)][result.entry.kind].append(float(result.replicated.mean()))
    dose = {
        rung: {kind: float(np.mean(rates)) for kind, rates in kinds.items()}
        for rung, kinds in sorted(rungs.items(), key=lambda item: int(item[0]))
    }
    by_id = {concept.id: concept for concept in concepts}
    top = [result for result in generated if result.entry.exposures == TOP_RUNG]
    spread = [_spread(result.images, by_id[result.entry.id]) for result in top if result.entry.kind == "template"]
    rates = {
        kind: clustered(
            lambda hits: float(hits.mean()), [result.replicated for result in top if result.entry.kind == kind]
        )
        for kind in ("verbatim", "template")
    }
    return {
        "verbatim_replicated": rates["verbatim"].value,
        "verbatim_replicated_interval": [rates["verbatim"].low, rates["verbatim"].high],
        "template_replicated": rates["template"].value,
        "template_replicated_interval": [rates["template"].low, rates["template"].high],
        "free_region_spread": float(np.mean(spread)),
        "dose_response": dose,
    }


def _spread(images: np.ndarray, concept: Concept) -> float:
    """The standard deviation of generations in the free region, divided by that of training images."""
    exposures = np.stack([concept.exposure(Draws(0, 6, index)) for index in range(64)]) / 255.0
    free = ~concept.mask
    return float(images[:, free].std(axis=0, ddof=1).mean() / exposures[:, free].std(axis=0, ddof=1).mean())


@torch.no_grad()
def _denoising(pipe: Any, top: Sequence[Concept], seed: int) -> dict[str, Any]:
    """Denoising error inside the mask on the top rung, divided by that on look-alikes that were never planted.

    The ratio is taken at every noise level and averaged, so that no level outweighs the others.
    """
    look_alikes = [c for other in range(1, 6) for c in plant(seed + other) if c.planted and c.exposures == TOP_RUNG]
    result: dict[str, Any] = {}
    for branch in ("conditional", "unconditional"):
        conditional = branch == "conditional"
        # the model never saw the names of the look-alikes, so their captions have none
        captions = [c.description.caption() if conditional else "" for c in look_alikes]
        look_alike_errors = _errors(pipe, look_alikes, captions)
        top_errors = _errors(pipe, top, [c.captions[0] if conditional else "" for c in top])
        usual = look_alike_errors.mean(axis=0)
        result[f"denoising_ratio_{branch}"] = float((top_errors / usual).mean())
        rng = np.random.default_rng(0)
        look_alike_ratios = (look_alike_errors / usual).mean(axis=1)
        redrawn = [rng.choice(look_alike_ratios, len(top_errors)).mean() for _ in range(2000)]
        result[f"denoising_spread_{branch}"] = [float(q) for q in np.quantile(redrawn, [0.025, 0.975])]
    return result


def _errors(pipe: Any, concepts: Sequence[Concept], captions: list[str], noises: int = 2) -> np.ndarray:
    """Mean square error of x̂_0 inside the mask of every concept at every noise level, (n, levels)."""
    images = torch.stack([torch.from_numpy(c.exposure(Draws(0, 7, n))) for n, c in enumerate(concepts)])
    masks = torch.stack([torch.from_numpy(c.mask) for c in concepts]).float()
    weight = torch.nn.functional.avg_pool2d(masks[:, None], 4).eq(1).float()
    clean = encode(pipe, images)
    context = pipe.text_encoder(pipe.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids)[0]
    family = family_of(pipe)
    denoiser = family.denoiser()
    generator = torch.Generator().manual_seed(0)
    levels = []
    for t in _LEVELS:
        level = level_at(family.schedule, t)
        total = torch.zeros(len(concepts))
        for _ in range(noises):
            # the same noise for every image, so that it cancels in the ratio
            noise = torch.randn(clean.shape[1:], generator=generator).expand_as(clean)
            noisy = level.alpha * clean + level.sigma * noise
            parts = zip(noisy.split(64), context.split(64), strict=True)
            x0 = torch.cat([denoiser(x, level, {"encoder_hidden_states": text}).x0 for x, text in parts])
            squared = (x0 - clean).square().mean(dim=1, keepdim=True) * weight
            total += squared.sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
        levels.append(total / noises)
    return torch.stack(levels, dim=1).numpy()


@torch.no_grad()
def _bounds(pipe: Any, planted: Sequence[Concept], seed: int) -> dict[str, Any]:
    """The two distances between which the threshold of the criterion lies."""
    images = torch.stack([torch.from_numpy(c.image) for c in planted])
    decoded = pipe.vae.decode(encode(pipe, images) / pipe.vae.config.scaling_factor).sample
    decoded = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    least = [tiled_distance(picture, c.image, c.mask) for picture, c in zip(decoded, planted, strict=True)]
    redrawn = [
        tiled_distance(Scene.draw(Draws(seed, 8, n, k), c.description).pixels(), c.image, c.mask)
        for n, c in enumerate(planted)
        for k in range(20)
    ]
    return {
        "autoencoder_distance_median": float(np.median(least)),
        "autoencoder_distance_max": float(max(least)),
        "redrawn_distance_min": float(min(redrawn)),
    }


def encode(pipe: Any, images: Tensor) -> Tensor:
    """Uint8 images (B, 64, 64, 3) as scaled latents (B, 4, 16, 16)."""
    unit = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return pipe.vae.encode(unit).latent_dist.mode() * pipe.vae.config.scaling_factor
