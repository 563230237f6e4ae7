"""Detection, localization and mitigation on the bundled model: docs/results/first_look.json.

    python benchmarks/first_look.py > docs/results/first_look.json

Positive side: every wording of every concept on the top rung (112 prompts), two seeds each. Negative side: captions of
the generator that were never planted, and apart from them the hard negatives. Scores are those of the registered
detectors that cost nothing, under the bundled calibration. `best` is chosen on other data: the rung below the top one,
and captions drawn for selection. Intervals (95%) redraw whole concepts on the positive side and whole captions on the
negative side. Where every redrawn figure is 1 an interval shrinks to a point: no cluster disagreed, which does not mean
that none could. Maps are judged on template generations that replicate, by the area under the ROC curve over the pixels
of every picture (memorized against free), averaged. `replicated` is the share of top-rung generations that reproduce
the planted pixels: as they are, under the published rule (arXiv:2605.22050), and behind a guard that rephrases.
`withheld` are those that this guard does not show, and `replicated_of_returned` is the share among those that it does.
Figures without a detector's name are of `best`, `map_pixel_auc` is of Δh.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from common import Start, print_json, progress

from cryptomnesia import (
    Calibration,
    CurvatureDifference,
    Guard,
    ScoreDifference,
    StabilityRule,
    load_pipeline,
    stabilize,
)
from cryptomnesia.calibration.stored import resolved
from cryptomnesia.detectors import Detector, free_detectors
from cryptomnesia.images import upsampled
from cryptomnesia.localizers import Watched
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.statistics import auc, clustered, tpr_at_fpr
from cryptomnesia.tracing.generation import generate

MITIGATIONS = ("none", "published", "rephrasing")
SEEDS = 2
NEGATIVES = 300
LOCALIZERS = {
    "curvature-difference": CurvatureDifference(),
    "curvature-difference, last evaluation": CurvatureDifference(step=-1),
    "score-difference": ScoreDifference(),
}


def main() -> None:
    """Measure and print JSON."""
    pipe = load_pipeline("bundled", device="cpu")
    with progress() as start:
        figures = measure(pipe, start)
    print_json(figures, scheduler=type(pipe.scheduler).__name__)


def measure(pipe: Any, start: Start) -> dict[str, Any]:
    """All figures."""
    manifest = Manifest.load(BUNDLE)
    manifest.check(pipe)
    setup = Setup.of(pipe, {"num_inference_steps": manifest.steps})
    calibration = resolved(None, pipe)
    calibration.check(setup)
    detectors = free_detectors(setup)
    names = [detector.name for detector in detectors]
    run = partial(records_of, setup, calibration, detectors, manifest, start)

    top = [e for e in manifest.entries if e.planted and e.exposures == manifest.top]
    lower = max(e.exposures for e in manifest.entries if e.planted and e.exposures < manifest.top)
    below = [e for e in manifest.entries if e.planted and e.exposures == lower]
    selection = {
        "planted": run("selection, planted", *entries_and_prompts(below), first_seed=3_000_000),
        "ordinary": run(
            "selection, ordinary", *ordinary(manifest.control_captions("selection", 100)), first_seed=3_100_000
        ),
    }
    positive = run("top rung", *entries_and_prompts(top), first_seed=4_000_000, look_closer=True)
    unplanted = manifest.control_captions("evaluation", NEGATIVES)
    negative = run("never planted", *ordinary(unplanted), first_seed=4_100_000)
    hard = {
        kind: run(
            kind,
            *entries_and_prompts([e for e in manifest.entries if e.kind == kind]),
            first_seed=4_200_000 + 100_000 * number,
        )
        for number, kind in enumerate(("rare_name", "fixed_pixels", "frequent"))
    }

    def chosen(name: str) -> float:
        return auc(flat(selection["planted"], name), flat(selection["ordinary"], name))

    best = max(names, key=chosen)
    figures: dict[str, Any] = {"best": best, "selection_auc": {name: chosen(name) for name in names}}
    for kind in ("planted", "verbatim", "template"):
        judged = [record for record in positive if kind in ("planted", record["kind"])]
        for figure, statistic in (("auc", auc), ("tpr_at_1pct_fpr", tpr_at_fpr)):
            every = {
                name: asdict(clustered(statistic, clusters(judged, name), clusters(negative, name))) for name in names
            }
            figures[f"{figure}_{kind}"] = every[best]["value"]
            figures[f"{figure}_{kind}_by_detector"] = every
    figures["auc_against_hard_negatives"] = {
        kind: {name: auc(flat(positive, name), flat(records, name)) for name in names} for kind, records in hard.items()
    }
    mapped = [record for record in positive if record["maps"]]
    pixels = {name: asdict(clustered(mean, clusters(mapped, name, "maps"))) for name in LOCALIZERS}
    figures["map_pixel_auc"] = pixels["curvature-difference"]["value"]
    figures["map_pixel_auc_by_map"] = pixels
    figures["replicated"] = {name: asdict(clustered(mean, clusters(positive, name))) for name in MITIGATIONS}
    figures["withheld"] = asdict(clustered(mean, clusters(positive, "withheld")))
    returned = [record for record in positive if not record["withheld"]]
    figures["replicated_of_returned"] = asdict(clustered(mean, clusters(returned, "rephrasing")))
    figures["counts"] = {
        "planted_prompts": {
            kind: len({record["prompt"] for record in positive if record["kind"] == kind})
            for kind in ("verbatim", "template")
        },
        "planted_images": len(positive),
        "never_planted_prompts": len(negative),
        "hard_negative_images": {kind: len(records) for kind, records in hard.items()},
        "maps": len(mapped),
        "calibration_references": len(calibration),
    }
    return figures


def entries_and_prompts(entries: Sequence[Entry], seeds: int = SEEDS) -> tuple[list[Entry | None], list[str]]:
    """Every wording of every entry, `seeds` times."""
    pairs = [(entry, caption) for entry in entries for caption in entry.captions for _ in range(seeds)]
    return [entry for entry, _ in pairs], [caption for _, caption in pairs]


def ordinary(captions: list[str]) -> tuple[list[Entry | None], list[str]]:
    """Captions without an entry."""
    return [None] * len(captions), captions


def records_of(
    setup: Setup,
    calibration: Calibration,
    detectors: Sequence[Detector],
    manifest: Manifest,
    start: Start,
    what: str,
    entries: list[Entry | None],
    prompts: list[str],
    *,
    first_seed: int,
    look_closer: bool = False,
) -> list[dict[str, Any]]:
    """One record per image: scores, and for a closer look replication, map quality and mitigated replication."""
    size = 16
    seeds = range(first_seed, first_seed + len(prompts))
    tell = start(what, len(prompts))
    records: list[dict[str, Any]] = []
    threshold = ground_of(manifest.ground).threshold
    keep = {localizer.step for localizer in LOCALIZERS.values()} if look_closer else ()
    for batch in generate(setup, prompts, seeds, batch_size=size, keep=keep, progress=tell):
        scores = {detector.name: detector.score(batch.trajectory, calibration.references) for detector in detectors}
        entries_of_batch = entries[len(records) : len(records) + len(batch.prompts)]
        new = [
            {
                "prompt": prompt,
                "cluster": prompt if entry is None else entry.id,
                "kind": None if entry is None else entry.kind,
                **{name: values[row].item() for name, values in scores.items()},
                "maps": {},
            }
            for row, (prompt, entry) in enumerate(zip(batch.prompts, entries_of_batch, strict=True))
        ]
        if look_closer:
            guarding = Guard(setup.pipe, calibration, policy="mitigate", mitigation="rephrasing")
            images = {"none": batch.images}
            for name, around in {
                "published": partial(stabilize, setup.pipe, calibration.references, StabilityRule()),
                "rephrasing": lambda guarding=guarding: guarding,
            }.items():
                (other,) = generate(setup, batch.prompts, batch.seeds, batch_size=size, around=around)
                images[name] = other.images
            watched = Watched(batch.trajectory, setup.family.denoiser(), seeds=batch.seeds)
            maps = {name: localizer.map(watched).values for name, localizer in LOCALIZERS.items()}
            for row, (record, entry) in enumerate(zip(new, entries_of_batch, strict=True)):
                assert entry is not None
                places = manifest.places(entry)
                for name in MITIGATIONS:
                    image = images[name][row].permute(1, 2, 0).numpy()
                    record[name] = bool(replicates(image, places, threshold))
                record["withheld"] = guarding.verdicts[row].action == "withheld"
                if entry.kind == "template" and record["none"]:
                    record["maps"] = {name: pixel_auc(values[row], places[0].mask) for name, values in maps.items()}
        records += new
    return records


def mean(values: np.ndarray) -> float:
    """The mean."""
    return float(values.mean())


def pixel_auc(heat: Any, mask: np.ndarray) -> float:
    """AUC of a map (h, w) over the pixels of `mask` (H, W) bool."""
    large = upsampled(heat[None], *mask.shape)[0].numpy()
    return auc(large[mask], large[~mask])


def flat(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """The scores of all records."""
    return np.array([record[name] for record in records])


def clusters(records: list[dict[str, Any]], name: str, inside: str | None = None) -> list[np.ndarray]:
    """The scores by cluster."""
    grouped: dict[str, list[float]] = {}
    for record in records:
        grouped.setdefault(record["cluster"], []).append((record[inside] if inside else record)[name])
    return [np.array(values) for values in grouped.values()]


if __name__ == "__main__":
    main()
