"""Stability regions on the bundled model: docs/results/stability.json and docs/images/decide_by.png.

    python benchmarks/stability.py > docs/results/stability.json
    python benchmarks/stability.py --only pndm --earlier docs/results/stability.json > new.json

The second command measures one solver again and takes the others from an earlier file; `made_by` then says for every
solver at which commit it was measured.

Detection, for every solver with a calibration of its own: planted concepts (top rung and, with the model's own solver
PNDM, every rung; all wordings) against never-planted captions and against each kind of hard negative. `fpr_met` is the
share of these that are flagged at `rate`. `by_evaluation`, the AUC of the score so far, says what an early decision
costs. `by_rung` and `by_evaluation` are of PNDM.

Mitigation, with PNDM: every wording of every concept on the top rung, as it is, under the published rule with every
image returned, and under `Rephrasing` through `guard`. `memorization_rate` is the share of images that reproduce the
planted pixels; `memorization_rate_of_replicated` counts only seeds that do so when nothing is done. `fidelity` is the
share of the caption's attributes that a classifier finds in the picture (benchmarks/attributes.py), 0 for a withheld
one; `fidelity_of_other_captions` is the same figure for captions of other concepts. `unflagged_changed` is the share
of never-planted captions' pictures that change at all, of those that a guard calls clean when nothing is done, and of
all.

A rate for which there are too few negatives is null. Intervals (95%) redraw whole concepts or captions, of which there
are as many as `clusters` says; of few clusters an interval says little. The interval of `fpr_met` holds the chance of
the judged captions, not that of the references from which the threshold comes. What is generated is kept in
.benchmarks-cache, so an interrupted run goes on where it was.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from attributes import Classifier, attributes, ceiling, shown, trained
from common import COMMIT, Start, kept, place, print_json, progress
from first_look import entries_and_prompts, ordinary
from torch import Tensor

from cryptomnesia import (
    Calibration,
    Rephrasing,
    StabilityRule,
    Trajectory,
    calibrate,
    guard,
    load_pipeline,
    stabilize,
)
from cryptomnesia.calibration.stored import resolved
from cryptomnesia.detectors import free_detectors
from cryptomnesia.mitigations import Mitigation
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.statistics import auc, clustered, tpr_at_fpr
from cryptomnesia.statistics import rate as share
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.trajectory import joined

OWN = "pndm"
"""The model's own solver, for which most is measured."""
SOLVERS = (OWN, "ddim", "euler", "euler-ancestral", "heun", "dpm++", "unipc", "lms")
BY_SOLVER = ("auc", "tpr_at_1pct", "tpr_at_0.1pct", "fpr_met", "images", "clusters")
"""Figures that there are of every solver; the others are of the model's own."""
REPORTED = ("drift", "stability", "guidance-mean")
"""The default detector, the published one, and the strongest of the peers."""
DETECTOR = REPORTED[0]
"""That of the guard."""
REFERENCES = 150
"""For the solvers whose calibration does not come with the bundled model."""
NEGATIVES = {OWN: 1000}
OTHER_NEGATIVES = 200
HARD_SEEDS = {OWN: 7}
"""Seeds of every wording of a hard negative; 7 make at least 100 images of each kind."""
OTHER_HARD_SEEDS = 2
MITIGATED_SEEDS = 3
"""3 make 336 images, of which enough replicate."""
RATE = 0.01
BATCH = 16
FEW_DRAWS = 100
"""Bootstrap samples where there are many figures."""
HARD = ("rare_name", "fixed_pixels", "frequent")
STATISTICS: dict[str, Callable[..., float]] = {
    "auc": auc,
    "tpr_at_1pct": tpr_at_fpr,
    "tpr_at_0.1pct": lambda positive, negative: tpr_at_fpr(positive, negative, 0.001),
}


@dataclass(frozen=True)
class Subject:
    """The bundled model with a solver, its calibration, the truth about it, and how progress is shown."""

    solver: str
    setup: Setup
    manifest: Manifest
    calibration: Calibration
    start: Start


@dataclass(frozen=True)
class Group:
    """Images of one sort.

    Attributes:
        ids: the concept or caption that each belongs to.
        kinds: of the concepts, None for captions without one.
        running: detector → scores after every evaluation, (n, N).
        flagged: detector → (n,) bool, at `RATE`.
    """

    ids: list[str]
    kinds: list[str | None]
    running: dict[str, np.ndarray]
    flagged: dict[str, np.ndarray]

    def scores(self, detector: str, evaluation: int = -1) -> list[np.ndarray]:
        """Scores by concept or caption."""
        return by(self.ids, self.running[detector][:, evaluation])

    def of(self, kind: str) -> "Group":
        """The images of one kind of concept."""
        chosen = np.array([one == kind for one in self.kinds], dtype=bool)
        running = {name: values[chosen] for name, values in self.running.items()}
        flagged = {name: values[chosen] for name, values in self.flagged.items()}
        return Group(list(compress(self.ids, chosen)), [kind] * int(chosen.sum()), running, flagged)


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=SOLVERS, action="append", help="measure this solver; may be given repeatedly")
    parser.add_argument("--earlier", type=Path, help="results file with the figures of the other solvers")
    given = parser.parse_args()
    measured = tuple(given.only or SOLVERS)
    if len(measured) < len(SOLVERS) and given.earlier is None:
        parser.error("--only needs --earlier, for the other solvers")
    earlier = {} if given.earlier is None else json.loads(given.earlier.read_text())
    with progress() as start:
        figures = measure(start, measured, earlier)
    before = earlier.get("made_by", {})
    commits = {
        solver: COMMIT if solver in measured else before.get("commits", {}).get(solver, before.get("commit"))
        for solver in SOLVERS
    }
    print_json(figures, commits=commits)


def measure(start: Start, measured: Sequence[str], earlier: dict[str, Any]) -> dict[str, Any]:
    """All figures, of solvers that are not measured those of an earlier results file."""
    manifest = Manifest.load(BUNDLE)
    figures: dict[str, Any] = {"rate": RATE, "auc": {}, "tpr_at_1pct": {}, "tpr_at_0.1pct": {}, "fpr_met": {}}
    images: dict[str, dict[str, int]] = {}
    clusters: dict[str, dict[str, int]] = {}
    if OWN not in measured:
        figures |= {name: earlier[name] for name in earlier if name not in (*BY_SOLVER, "made_by")}
    for solver in SOLVERS:
        if solver not in measured:
            for name, part in {**figures, "images": images, "clusters": clusters}.items():
                if name in BY_SOLVER and solver in earlier[name]:
                    part[solver] = earlier[name][solver]
            continue
        subject = calibrated(solver, manifest, start)
        rungs = {
            rung: [e for e in manifest.entries if e.planted and e.exposures == rung]
            for rung in sorted({e.exposures for e in manifest.entries if e.planted})
            if solver == OWN or rung == manifest.top
        }
        positive = {
            rung: scored(subject, f"rung {rung}", *entries_and_prompts(entries), first_seed=5_000_000 + 10_000 * rung)
            for rung, entries in rungs.items()
        }
        unplanted = manifest.control_captions("evaluation", NEGATIVES.get(solver, OTHER_NEGATIVES))
        negative = {"never_planted": scored(subject, "never planted", *ordinary(unplanted), first_seed=6_000_000)}
        for number, kind in enumerate(HARD, start=1):
            entries = [e for e in manifest.entries if e.kind == kind]
            wanted = entries_and_prompts(entries, HARD_SEEDS.get(solver, OTHER_HARD_SEEDS))
            negative[kind] = scored(subject, kind, *wanted, first_seed=6_000_000 + 100_000 * number)
        if solver == OWN:
            figures["by_rung"] = {
                str(rung): {against: compared(planted, others) for against, others in negative.items()}
                for rung, planted in positive.items()
            }
            figures["by_evaluation"] = by_evaluation(positive[manifest.top], negative["never_planted"])
            draw(figures["by_evaluation"])
            figures |= mitigation(subject, unplanted[:OTHER_NEGATIVES])
        for name, statistic in STATISTICS.items():
            if name == "tpr_at_0.1pct" and len(unplanted) < 1000:
                continue
            figures[name][solver] = {
                detector: {
                    kind: {
                        against: asdict(clustered(statistic, planted.scores(detector), others.scores(detector)))
                        for against, others in negative.items()
                        if name != "tpr_at_0.1pct" or against == "never_planted"
                    }
                    for kind in ("verbatim", "template")
                    if (planted := positive[manifest.top].of(kind)).ids
                }
                for detector in REPORTED
            }
        figures["fpr_met"][solver] = {
            detector: {
                against: asdict(share(by(others.ids, others.flagged[detector]))) for against, others in negative.items()
            }
            for detector in REPORTED
        }
        groups = {"top_rung": positive[manifest.top], **negative}
        images[solver] = {name: len(group.ids) for name, group in groups.items()}
        images[solver]["references"] = len(subject.calibration)
        clusters[solver] = {name: len(set(group.ids)) for name, group in groups.items()}
    return {**figures, "images": images, "clusters": clusters}


def calibrated(solver: str, manifest: Manifest, start: Start) -> Subject:
    """The bundled model with a solver, and its calibration."""
    pipe = load_pipeline("bundled", scheduler="own" if solver == OWN else solver, device="cpu")
    manifest.check(pipe)
    call: dict[str, Any] = {"num_inference_steps": manifest.steps}
    setup = Setup.of(pipe, call)
    if solver == OWN:
        calibration = resolved(None, pipe)
    else:
        captions = manifest.control_captions("calibration", REFERENCES)
        path = place(f"{solver} calibration", setup=setup.fingerprint, prompts=captions)
        if not path.exists():
            tell = start(f"{solver}: calibration", REFERENCES)
            calibrate(pipe, captions, batch_size=BATCH, progress=tell, **call).save(path)
        calibration = Calibration.load(path)
    calibration.check(setup)
    return Subject(solver, setup, manifest, calibration, start)


def scored(subject: Subject, what: str, entries: Sequence[Entry | None], prompts: list[str], first_seed: int) -> Group:
    """One image per prompt, with its scores."""

    def make() -> tuple[dict[str, Any], dict[str, Tensor]]:
        seeds = range(first_seed, first_seed + len(prompts))
        tell = subject.start(f"{subject.solver}: {what}", len(prompts))
        made = generate(subject.setup, prompts, seeds, batch_size=BATCH, decode=False, progress=tell)
        runs = joined([batch.trajectory.bare() for batch in made])
        return {"timesteps": runs.timesteps, "complete": runs.complete}, dict(runs.norms)

    about, norms = kept(f"{subject.solver} {what}", make, **decided_by(subject), prompts=prompts, first_seed=first_seed)
    runs = Trajectory(tuple(about["timesteps"]), norms, {}, torch.empty(len(prompts), 0), about["complete"])
    calibration = subject.calibration
    detectors = {detector.name: detector for detector in free_detectors(subject.setup)}
    return Group(
        [prompt if entry is None else entry.id for entry, prompt in zip(entries, prompts, strict=True)],
        [None if entry is None else entry.kind for entry in entries],
        {name: detector.running(runs, calibration.references).numpy() for name, detector in detectors.items()},
        {
            name: (calibration.p_value(detector, detector.score(runs, calibration.references)) <= RATE).numpy()
            for name, detector in detectors.items()
        },
    )


def decided_by(subject: Subject) -> dict[str, Any]:
    """What generations depend on, besides prompts and seeds."""
    return {"setup": subject.calibration.fingerprint}


def mitigation(subject: Subject, unplanted: list[str]) -> dict[str, Any]:
    """Replication, fidelity and side effects with nothing, with the published rule, and with `Rephrasing` (`ours`)."""
    manifest = subject.manifest
    threshold = ground_of(manifest.ground).threshold
    listed, prompts = entries_and_prompts(
        [e for e in manifest.entries if e.planted and e.exposures == manifest.top], MITIGATED_SEEDS
    )
    entries = [e for e in listed if e is not None]
    ids = [e.id for e in entries]
    in_caption = torch.stack([torch.from_numpy(attributes(e.captions[0])).float() for e in entries])
    # every caption is paired with that of a concept five places on
    in_other_caption = in_caption.roll(5 * MITIGATED_SEEDS * len(entries[0].captions), dims=0)
    classifier = Classifier()
    classifier.load_state_dict(kept("classifier", lambda: ({}, trained().state_dict()))[1])
    hits: dict[str, np.ndarray] = {}
    fidelity: dict[str, np.ndarray] = {}
    chance: dict[str, float] = {}
    actions: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    plain, _, clean = guarded(subject, "none never planted", None, unplanted, 7_100_000)
    for name, method in {"none": None, "published": StabilityRule(), "ours": Rephrasing()}.items():
        images, taken, _ = guarded(subject, f"{name} planted", method, prompts, 7_000_000)
        hits[name] = np.array(
            [
                bool(replicates(image.permute(1, 2, 0).numpy(), manifest.places(e), threshold))
                for image, e in zip(images, entries, strict=True)
            ]
        )
        # a withheld picture shows nothing of its caption
        returned = np.array([action != "withheld" for action in taken])
        fidelity[name] = shown(classifier, images, in_caption) * returned
        chance[name] = float((shown(classifier, images, in_other_caption) * returned).mean())
        actions[name] = {action: taken.count(action) for action in ("none", "mitigated", "withheld")}
        images, _, _ = guarded(subject, f"{name} never planted", method, unplanted, 7_100_000)
        differs = ((images - plain).flatten(1).abs().amax(dim=1) > 0).numpy()
        changed[name] = {
            "never_flagged": asdict(share(by(list(compress(unplanted, clean)), differs[clean]))),
            "all": asdict(share(by(unplanted, differs))),
        }
    replicated = hits["none"]
    return {
        "memorization_rate": {name: asdict(share(by(ids, values))) for name, values in hits.items()},
        "memorization_rate_of_replicated": {
            name: asdict(share(by(list(compress(ids, replicated)), values[replicated])))
            for name, values in hits.items()
            if replicated.any()
        },
        "replicated_generations": int(replicated.sum()),
        "fidelity": {name: asdict(clustered(mean, by(ids, values))) for name, values in fidelity.items()},
        "fidelity_ceiling": ceiling(classifier),
        "fidelity_of_other_captions": chance,
        "actions": actions,
        "unflagged_changed": changed,
    }


def guarded(
    subject: Subject, what: str, method: Mitigation | None, prompts: list[str], first_seed: int
) -> tuple[Tensor, list[str], np.ndarray]:
    """Of the user's own calls: images (n, 3, 64, 64), what was done about each, and whether it was called clean (n,).

    Without a method a guard observes. The published rule is measured as it is, every image being returned, `Rephrasing`
    through the guard.
    """
    pipe = subject.setup.pipe

    def make() -> tuple[dict[str, Any], dict[str, Tensor]]:
        tell = subject.start(what, len(prompts))
        images, actions, clean = [], [], []
        pipe.set_progress_bar_config(disable=True)
        published = (
            stabilize(pipe, subject.calibration.references, method)
            if isinstance(method, StabilityRule)
            else nullcontext()
        )
        settings: dict[str, Any] = (
            {"policy": "mitigate", "mitigation": method} if isinstance(method, Rephrasing) else {}
        )
        with guard(pipe, subject.calibration, detector=DETECTOR, fpr=RATE, **settings) as guarding, published:
            for begin in range(0, len(prompts), BATCH):
                part = prompts[begin : begin + BATCH]
                output = pipe(
                    part,
                    num_inference_steps=subject.manifest.steps,
                    generator=[torch.Generator().manual_seed(first_seed + begin + row) for row in range(len(part))],
                    output_type="pt",
                )
                images.append(output.images)
                actions += [verdict.action for verdict in guarding.verdicts]
                clean += [verdict.clean for verdict in guarding.verdicts]
                tell(begin + len(part))
        return {"actions": actions, "clean": clean}, {"images": torch.cat(images)}

    decides = {
        "references": subject.calibration.prompts_sha256,
        "mitigation": None if method is None else method.describe(),
        "rate": RATE,
        "detector": DETECTOR,
        "prompts": prompts,
        "seed": first_seed,
    }
    about, tensors = kept(what, make, **decided_by(subject), **decides)
    return tensors["images"], about["actions"], np.array(about["clean"], dtype=bool)


def compared(positive: Group, negative: Group) -> dict[str, Any]:
    """AUC and TPR at 1% of every detector for each kind of planted concept against `negative`."""
    return {
        kind: {
            name: {
                detector: asdict(
                    clustered(STATISTICS[name], planted.scores(detector), negative.scores(detector), draws=FEW_DRAWS)
                )
                for detector in planted.running
            }
            for name in ("auc", "tpr_at_1pct")
        }
        for kind in ("verbatim", "template")
        if (planted := positive.of(kind)).ids
    }


def by_evaluation(positive: Group, negative: Group) -> dict[str, dict[str, list[float]]]:
    """AUC of every detector's running score after each evaluation, with its interval."""
    curves: dict[str, dict[str, list[float]]] = {}
    for name, values in positive.running.items():
        estimates = [
            clustered(auc, positive.scores(name, k), negative.scores(name, k), draws=FEW_DRAWS)
            for k in range(values.shape[1])
        ]
        curves[name] = {part: [getattr(estimate, part) for estimate in estimates] for part in ("value", "low", "high")}
    return curves


def draw(curves: dict[str, dict[str, list[float]]]) -> None:
    """The picture of what an early decision costs."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for name, curve in curves.items():
        evaluations = range(1, len(curve["value"]) + 1)
        (line,) = axes.plot(evaluations, curve["value"], label=name)
        axes.fill_between(evaluations, curve["low"], curve["high"], color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="evaluations before the decision", ylabel="AUC, top rung against never planted", ylim=(0.45, 1.01))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig("docs/images/decide_by.png", dpi=150)


def mean(values: np.ndarray) -> float:
    """The mean, as a statistic."""
    return float(values.mean())


def by(ids: list[str], values: np.ndarray) -> list[np.ndarray]:
    """Values (n,) grouped by their ids."""
    grouped: dict[str, list[float]] = {}
    for one, value in zip(ids, values, strict=True):
        grouped.setdefault(one, []).append(float(value))
    return [np.array(group) for group in grouped.values()]


if __name__ == "__main__":
    main()
