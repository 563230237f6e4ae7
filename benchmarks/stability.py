"""Stability regions on the bundled model: docs/results/stability.json and docs/images/decide_by.png.

    python benchmarks/stability.py > docs/results/stability.json

Detection, for every solver with a calibration of its own: planted concepts (top rung and, with DDIM, every rung;
all wordings) against never-planted captions and against each kind of hard negative. AUC by
evaluation says what an early decision costs. Mitigation, with DDIM: every wording of every concept on
the top rung, two seeds each, as it is, under the published rule and under `Rephrasing`, both through `guard`.
`memorization_rate` is the share of images that reproduce the planted pixels; `memorization_rate_of_replicated` counts
only seeds that do so when nothing is done. `fidelity` is the share of the caption's attributes that a
classifier finds in the picture (benchmarks/attributes.py), 0 for a withheld one;
`fidelity_of_other_captions` is the same figure for captions of other concepts. A rate for which there are too few
negatives is null. Intervals (95%) redraw whole concepts or captions.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from attributes import attributes, ceiling, shown, trained
from first_look import entries_and_prompts, ordinary
from rich.console import Console
from rich.progress import Progress

from cryptomnesia import Calibration, Rephrasing, Sampling, StabilityRule, generate, guard, stabilize
from cryptomnesia.detectors import DETECTORS
from cryptomnesia.evaluate import auc, clustered, tpr_at_fpr
from cryptomnesia.evaluate import rate as share
from cryptomnesia.models import load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.bundle import control_captions
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.planted import TOP_RUNG, plant
from cryptomnesia.proving_ground.replication import replicates

SOLVERS = ("ddim", "pndm", "euler", "euler-ancestral", "heun", "dpm++", "unipc", "lms")
REFERENCES = 450
NEGATIVES = {"ddim": 1000}
OTHER_NEGATIVES = 200
RATE = 0.01
BATCH = 16
Tell = Callable[[float], None]
Start = Callable[[str, int], Tell]
HARD = ("rare_name", "fixed_pixels", "frequent")


def main() -> None:
    """Measure and print JSON."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:

        def start(what: str, total: int) -> Tell:
            task = bar.add_task(what, total=total)
            return lambda done: bar.update(task, completed=done)

        figures = measure(start)
    sys.stdout.write(json.dumps(known(figures), indent=2) + "\n")


def known(value: Any) -> Any:
    """JSON values with null for NaN."""
    if isinstance(value, dict):
        return {key: known(each) for key, each in value.items()}
    return None if isinstance(value, float) and value != value else value


def measure(start: Start) -> dict[str, Any]:
    """All figures."""
    manifest = Manifest.load(BUNDLE)
    concepts = plant(manifest.seed)
    figures: dict[str, Any] = {"rate": RATE, "auc": {}, "tpr_at_1pct": {}, "tpr_at_0.1pct": {}, "fpr_met": {}}
    references = control_captions("calibration", REFERENCES, concepts)
    for solver in SOLVERS:
        pipe = load_pipeline("bundled", scheduler=solver, device="cpu")
        manifest.check(pipe)
        sampling = Sampling(manifest.steps, manifest.guidance)
        if solver == "ddim":
            calibration = Calibration.load(BUNDLE / "calibration.safetensors")
        else:
            tell = start(f"{solver}: calibration", REFERENCES)
            calibration = Calibration.fit(pipe, references, sampling, batch_size=BATCH, progress=tell)

        def run(what: str, entries: list[Entry | None], prompts: list[str], first_seed: int) -> list[dict[str, Any]]:
            tell = start(f"{solver}: {what}", len(prompts))  # noqa: B023
            return records(pipe, calibration, sampling, entries, prompts, first_seed, tell)  # noqa: B023

        rungs = {
            rung: [e for e in manifest.entries if e.planted and e.exposures == rung]
            for rung in sorted({e.exposures for e in manifest.entries if e.planted})
            if solver == "ddim" or rung == TOP_RUNG
        }
        positive = {
            rung: run(f"rung {rung}", *entries_and_prompts(own), first_seed=5_000_000 + 10_000 * rung)
            for rung, own in rungs.items()
        }
        unplanted = control_captions("evaluation", NEGATIVES.get(solver, OTHER_NEGATIVES), concepts)
        negative = {"never_planted": run("never planted", *ordinary(unplanted), first_seed=6_000_000)}
        for number, kind in enumerate(HARD, start=1):
            own = [e for e in manifest.entries if e.kind == kind]
            negative[kind] = run(kind, *entries_and_prompts(own), first_seed=6_000_000 + 100_000 * number)
        if solver == "ddim":
            figures["by_rung"] = {str(rung): compared(own, negative["never_planted"]) for rung, own in positive.items()}
            figures["by_evaluation"] = by_evaluation(positive[TOP_RUNG], negative["never_planted"])
            draw(figures["by_evaluation"])
        for name, statistic in STATISTICS.items():
            if name == "tpr_at_0.1pct" and len(negative["never_planted"]) < 1000:
                continue
            figures[name][solver] = {
                kind: {
                    against: asdict(clustered(statistic, clusters(own, "stability"), clusters(others, "stability")))
                    for against, others in negative.items()
                    if name != "tpr_at_0.1pct" or against == "never_planted"
                }
                for kind in ("verbatim", "template")
                if (own := [record for record in positive[TOP_RUNG] if record["kind"] == kind])
            }
        figures["fpr_met"][solver] = asdict(share(clusters(negative["never_planted"], "flagged")))
        if solver == "ddim":
            figures |= mitigation(pipe, calibration, sampling, manifest, unplanted[:OTHER_NEGATIVES], start)
    figures["counts"] = {
        "top_rung_prompts": 4 * sum(e.planted and e.exposures == TOP_RUNG for e in manifest.entries),
        "never_planted": {solver: NEGATIVES.get(solver, OTHER_NEGATIVES) for solver in SOLVERS},
        "references": REFERENCES,
    }
    return figures


STATISTICS: dict[str, Callable[..., float]] = {
    "auc": auc,
    "tpr_at_1pct": tpr_at_fpr,
    "tpr_at_0.1pct": lambda positive, negative: tpr_at_fpr(positive, negative, 0.001),
}


def records(
    pipe: Any,
    calibration: Calibration,
    sampling: Sampling,
    entries: Sequence[Entry | None],
    prompts: list[str],
    first_seed: int,
    tell: Tell,
) -> list[dict[str, Any]]:
    """One per image: cluster, kind, final scores, whether flagged, and the running scores."""
    seeds = range(first_seed, first_seed + len(prompts))
    found: list[dict[str, Any]] = []
    for batch in generate(pipe, prompts, seeds, sampling, batch_size=BATCH, progress=tell):
        running = {name: make(calibration.reference).running(batch.trajectory) for name, make in DETECTORS.items()}
        for row, prompt in enumerate(batch.prompts):
            entry = entries[len(found)]
            scores = {name: values[row, -1].item() for name, values in running.items()}
            p_value = calibration.p_value("stability", torch.tensor([scores["stability"]])).item()
            found.append(
                {
                    "cluster": prompt if entry is None else entry.id,
                    "kind": None if entry is None else entry.kind,
                    **scores,
                    "flagged": float(p_value <= RATE),
                    "running": {name: values[row].numpy() for name, values in running.items()},
                }
            )
    return found


def mitigation(
    pipe: Any,
    calibration: Calibration,
    sampling: Sampling,
    manifest: Manifest,
    unplanted: list[str],
    start: Start,
) -> dict[str, Any]:
    """Replication, fidelity and side effects with nothing, the published rule and ours."""
    by_id = {concept.id: concept for concept in plant(manifest.seed)}
    top = [e for e in manifest.entries if e.planted and e.exposures == TOP_RUNG]
    entries, prompts = entries_and_prompts(top)
    classifier = trained()
    rules = {"none": None, "published": StabilityRule(), "ours": Rephrasing()}
    hits: dict[str, np.ndarray] = {}
    fidelity: dict[str, np.ndarray] = {}
    chance: dict[str, float] = {}
    actions: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    plain_ordinary: torch.Tensor | None = None
    for name, rule in rules.items():
        setup = pipe, calibration, sampling, rule
        images, verdicts = guarded(*setup, prompts, 7_000_000, start(f"{name}: planted", len(prompts)))
        told = torch.stack(
            [torch.from_numpy(attributes(by_id[e.id].description)).float() for e in entries if e is not None]
        )
        hits[name] = np.array(
            [
                bool(replicates(image.permute(1, 2, 0).numpy(), manifest.image(e), manifest.mask(e)))
                for image, e in zip(images, entries, strict=True)
                if e is not None
            ]
        )
        # what was withheld shows nothing of its caption
        returned = np.array([verdict.action != "withheld" for verdict in verdicts])
        fidelity[name] = shown(classifier, images, told) * returned
        chance[name] = float((shown(classifier, images, told.roll(8 * 5, dims=0)) * returned).mean())
        actions[name] = {what: sum(v.action == what for v in verdicts) for what in ("none", "mitigated", "withheld")}
        tell = start(f"{name}: never planted", len(unplanted))
        ordinary_images, ordinary_verdicts = guarded(*setup, unplanted, 7_100_000, tell)
        if plain_ordinary is None:
            plain_ordinary = ordinary_images
        differs = (ordinary_images - plain_ordinary).flatten(1).abs().amax(dim=1).numpy() > 0
        clean = np.array([verdict.clean for verdict in ordinary_verdicts])
        changed[name] = {
            "never_flagged": asdict(share([np.array([float(d)]) for d in differs[clean]])),
            "all": asdict(share([np.array([float(d)]) for d in differs])),
        }
    ids = [e.id for e in entries if e is not None]
    replicated = hits["none"]
    return {
        "memorization_rate": {name: asdict(share(by(ids, values))) for name, values in hits.items()},
        "memorization_rate_of_replicated": {
            name: asdict(
                clustered(mean, by([i for i, hit in zip(ids, replicated, strict=True) if hit], values[replicated]))
            )
            for name, values in hits.items()
        },
        "replicated_generations": int(replicated.sum()),
        "fidelity": {name: asdict(clustered(mean, by(ids, values))) for name, values in fidelity.items()},
        "fidelity_ceiling": ceiling(classifier),
        "fidelity_of_other_captions": chance,
        "actions": actions,
        "unflagged_changed": changed,
    }


def guarded(
    pipe: Any,
    calibration: Calibration,
    sampling: Sampling,
    rule: Any,
    prompts: list[str],
    first_seed: int,
    tell: Tell,
) -> tuple[torch.Tensor, list[Any]]:
    """Images (n, 3, 64, 64) and verdicts of the user's own calls.

    Without a rule a guard observes. The published rule is measured as it is, every image being returned, ours
    through the guard.
    """
    images, verdicts = [], []
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"policy": "mitigate", "rule": rule} if isinstance(rule, Rephrasing) else {}
    published = stabilize(pipe, calibration.reference, rule) if isinstance(rule, StabilityRule) else nullcontext()
    with guard(pipe, calibration, rate=RATE, **settings) as guarding, published:
        for begin in range(0, len(prompts), BATCH):
            some = prompts[begin : begin + BATCH]
            output = pipe(
                some,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                generator=[torch.Generator().manual_seed(first_seed + begin + row) for row in range(len(some))],
                output_type="pt",
            )
            images.append(output.images)
            verdicts += guarding.verdicts
            tell(begin + len(some))
    return torch.cat(images), verdicts


def compared(positive: list[dict[str, Any]], negative: list[dict[str, Any]]) -> dict[str, Any]:
    """AUC of every detector for each kind of planted concept against `negative`."""
    return {
        kind: {
            name: asdict(clustered(auc, clusters(own, name), clusters(negative, name), draws=200)) for name in DETECTORS
        }
        for kind in ("verbatim", "template")
        if (own := [record for record in positive if record["kind"] == kind])
    }


def by_evaluation(positive: list[dict[str, Any]], negative: list[dict[str, Any]]) -> dict[str, list[float]]:
    """AUC of every detector's running score after each evaluation."""
    return {
        name: [
            auc(
                np.array([record["running"][name][k] for record in positive]),
                np.array([record["running"][name][k] for record in negative]),
            )
            for k in range(len(positive[0]["running"][name]))
        ]
        for name in DETECTORS
    }


def draw(curves: dict[str, list[float]]) -> None:
    """The picture of what an early decision costs."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set(xlabel="evaluations before the decision", ylabel="AUC, top rung against never planted", ylim=(0.45, 1.01))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig("docs/images/decide_by.png", dpi=150)


def mean(values: np.ndarray) -> float:
    """The mean, as a statistic."""
    return float(values.mean())


def clusters(own: list[dict[str, Any]], name: str) -> list[np.ndarray]:
    """The values of `name`, by cluster."""
    return by([record["cluster"] for record in own], np.array([record[name] for record in own]))


def by(ids: list[str], values: np.ndarray) -> list[np.ndarray]:
    """Values (n,) grouped by their ids."""
    return [values[[each == one for each in ids]].astype(float) for one in dict.fromkeys(ids)]


if __name__ == "__main__":
    main()
