"""Maps on the bundled model, judged by its exact masks: docs/results/curvature.json.

    python benchmarks/curvature.py > docs/results/curvature.json

Pictures: every wording of every concept on the top rung, two seeds each, of templates those that reproduce the planted
pixels; and never-planted captions. Truth: the mask of a template, all ones for verbatim concepts, all zeros for
never-planted captions. All maps come from the one generation of each picture, at its last step.

Protocols, both at 256×256 pixels. `paper`: log1p, scaled to [0, 1] over the whole set, and of 101
thresholds the best for each figure. `honest`: the threshold that 1% of the pixels of 150 reference
captions exceed, fixed beforehand. IoU is over all pixels of a set, mIoU the mean over pictures (an empty union
counts 1). Intervals (95%) redraw whole concepts and captions.

`by_step`, `by_probes`: how Δh depends on them, as mean pixel AUC on replicated templates, on the rung below
the top one where that has any, since defaults are chosen from these.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from first_look import entries_and_prompts, ordinary
from rich.console import Console
from rich.progress import Progress
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cryptomnesia.evaluate import clustered
from cryptomnesia.localizers import DiagonalEstimator, MapReference, upsampled
from cryptomnesia.localizing import Method, localize, method
from cryptomnesia.models import load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.bundle import control_captions
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.planted import TOP_RUNG, plant
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.settings import Sampling

NAMES = (
    "curvature-difference",
    "curvature-difference-checkpoint",
    "score-difference",
    "score-difference-checkpoint",
    "guidance-map",
    "curvature",
    "bright-ending",
)
ALL_ONES = "all-ones"
SIDE = 256
RATE = 0.01
REFERENCES = 150
NEGATIVES = 200
STEPS = (0, 10, 20, 30, 40, 45, 48, 49)
PROBES = (16, 32, 64, 128)
BATCH = 16

Tell = Callable[[float], None]
Start = Callable[[str, int], Tell]


class Picture:
    """One generated picture: its maps, its truth at 256×256, and the cluster it belongs to."""

    def __init__(self, maps: dict[str, Tensor], truth: np.ndarray, cluster: str, kind: str) -> None:
        """Maps (h, w), truth (64, 64) bool."""
        self.maps = maps
        self.truth = truth.repeat(SIDE // len(truth), axis=0).repeat(SIDE // len(truth), axis=1)
        self.cluster = cluster
        self.kind = kind


def main() -> None:
    """Measure and print JSON."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:

        def start(what: str, total: int) -> Tell:
            task = bar.add_task(what, total=total)
            return lambda done: bar.update(task, completed=done)

        figures = measure(start)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def measure(start: Start) -> dict[str, Any]:
    """All figures."""
    manifest = Manifest.load(BUNDLE)
    pipe = load_pipeline("bundled", device="cpu")
    manifest.check(pipe)
    other = load_pipeline(str(BUNDLE / "early"), device="cpu")
    sampling = Sampling(manifest.steps, manifest.guidance)
    concepts = plant(manifest.seed)
    methods = [method(name) for name in NAMES]

    def pictures(
        what: str,
        entries: Sequence[Entry | None],
        prompts: list[str],
        first_seed: int,
        made: Sequence[Method] = methods,
    ) -> list[Picture]:
        seeds = range(first_seed, first_seed + len(prompts))
        tell = start(what, len(prompts))
        found = localize(pipe, prompts, seeds, sampling, made, other=other, batch_size=BATCH, progress=tell)
        kept = []
        for entry, one in zip(entries, found, strict=True):
            if entry is None:
                kept.append(Picture(dict(one.maps), np.zeros((64, 64), bool), one.prompt, "never_planted"))
                continue
            mask = manifest.mask(entry)
            if replicates(one.image.permute(1, 2, 0).numpy(), manifest.image(entry), mask):
                kept.append(Picture(dict(one.maps), mask, entry.id, entry.kind))
        return kept

    def rung(exposures: int) -> list[Entry]:
        return [e for e in manifest.entries if e.planted and e.exposures == exposures]

    references = pictures(
        "references", *ordinary(control_captions("calibration", REFERENCES, concepts)), first_seed=8_000_000
    )
    planted = pictures("planted", *entries_and_prompts(rung(TOP_RUNG)), first_seed=8_100_000)
    unplanted = pictures(
        "never planted", *ordinary(control_captions("evaluation", NEGATIVES, concepts)), first_seed=8_200_000
    )
    templates = [one for one in planted if one.kind == "template"]
    sets = {
        "templates": templates,
        "templates_and_never_planted": templates + unplanted,
        "all": planted + unplanted,
    }
    thresholds = {
        name: MapReference.fit(torch.stack([one.maps[name] for one in references])).threshold(RATE) for name in NAMES
    }
    figures: dict[str, Any] = {"iou": {}, "miou": {}, "accuracy": {}}
    for kind, chosen in sets.items():
        for name in (*NAMES, ALL_ONES):
            for protocol, counted in protocols(chosen, name, thresholds).items():
                for figure, estimate in judged(counted, [one.cluster for one in chosen], protocol).items():
                    figures[figure].setdefault(name, {}).setdefault(protocol, {})[kind] = estimate
    figures["pixel_auc"] = {name: pixel_auc(templates, name) for name in NAMES}
    figures["detection_auc"] = {
        name: float(
            roc_auc_score(
                [True] * len(planted) + [False] * len(unplanted),
                [one.maps[name].mean().item() for one in planted + unplanted],
            )
        )
        for name in NAMES
    }
    lower = max(e.exposures for e in manifest.entries if e.planted and e.exposures < TOP_RUNG)
    selection = [e for e in rung(lower) if e.kind == "template"] or [e for e in rung(TOP_RUNG) if e.kind == "template"]
    figures["by_step"] = by_setting(
        lambda step: [method(name, step=step) for name in NAMES[:4]], STEPS, pictures, selection
    )
    figures["by_probes"] = by_setting(
        lambda probes: [method(name, estimator=DiagonalEstimator(probes=probes)) for name in NAMES[:2]],
        PROBES,
        pictures,
        selection,
    )
    figures["counts"] = {
        "templates": len(templates),
        "verbatim": len(planted) - len(templates),
        "never_planted": len(unplanted),
        "references": len(references),
    }
    return figures


def by_setting(
    made: Callable[[int], list[Method]], settings: Sequence[int], pictures: Any, entries: list[Entry]
) -> dict[str, dict[str, float]]:
    """Mean pixel AUC by setting and map."""
    found = {}
    for setting in settings:
        shown = pictures(f"setting {setting}", *entries_and_prompts(entries), 8_300_000, made(setting))
        names = [each.name for each in made(setting)]
        found[str(setting)] = {name: pixel_auc(shown, name)["value"] if shown else float("nan") for name in names}
    return found


def protocols(chosen: list[Picture], name: str, thresholds: dict[str, float]) -> dict[str, np.ndarray]:
    """Protocol → counts of (intersection, union, right) per picture, (T, n, 3) for T thresholds."""
    truth = np.stack([one.truth for one in chosen])
    if name == ALL_ONES:
        counted = counts(np.ones_like(truth), truth)[None]
        return {"paper": counted, "honest": counted}
    heat = upsampled(torch.stack([one.maps[name] for one in chosen]), SIDE, SIDE).numpy()
    scaled = np.log1p(heat)
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min())
    return {
        "paper": np.stack([counts(scaled > level, truth) for level in np.linspace(0, 1, 101)]),
        "honest": counts(heat > thresholds[name], truth)[None],
    }


def counts(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels in both, in either, and judged right, (n, 3)."""
    return np.stack([(mask & truth).sum((1, 2)), (mask | truth).sum((1, 2)), (mask == truth).sum((1, 2))], axis=1)


def judged(counted: np.ndarray, clusters: list[str], protocol: str) -> dict[str, Any]:
    """IoU, mIoU and accuracy with intervals, each at its own best threshold."""
    figures = {
        "iou": lambda c: float(c[:, 0].sum() / max(c[:, 1].sum(), 1)),
        "miou": lambda c: float(np.where(c[:, 1] > 0, c[:, 0] / np.maximum(c[:, 1], 1), 1.0).mean()),
        "accuracy": lambda c: float(c[:, 2].sum() / (len(c) * SIDE * SIDE)),
    }
    found = {}
    for name, figure in figures.items():
        best = max(range(len(counted)), key=lambda level: figure(counted[level]))
        groups = [counted[best][[each == one for each in clusters]] for one in dict.fromkeys(clusters)]
        found[name] = asdict(clustered(figure, groups))
        if protocol == "paper":
            found[name]["threshold"] = best / 100
    return found


def pixel_auc(chosen: list[Picture], name: str) -> dict[str, float]:
    """Mean AUC over the pixels of each picture, with its interval."""
    values: dict[str, list[float]] = {}
    for one in chosen:
        heat = upsampled(one.maps[name][None], 64, 64)[0].numpy()
        values.setdefault(one.cluster, []).append(float(roc_auc_score(one.truth[::4, ::4].ravel(), heat.ravel())))
    return asdict(clustered(lambda all_values: float(all_values.mean()), [np.array(own) for own in values.values()]))


if __name__ == "__main__":
    main()
