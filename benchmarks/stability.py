"""Stability regions on the bundled model: docs/results/stability.json and docs/images/decide_by.png.

    python benchmarks/stability.py > docs/results/stability.json

Detection, for every solver with a calibration of its own: planted concepts (top rung and, with DDIM, every rung;
all wordings) against never-planted captions and against each kind of hard negative. `fpr_met` is the share of these
that are flagged at `rate`. `by_evaluation`, the AUC of the score so far, says what an early decision costs.

Mitigation, with DDIM: every wording of every concept on the top rung, as it is, under the published rule with every
image returned, and under `Rephrasing` through `guard`. `memorization_rate` is the share of images that
reproduce the planted pixels; `memorization_rate_of_replicated` counts only seeds that do so when nothing is done.
`fidelity` is the share of the caption's attributes that a classifier finds in the picture (benchmarks/attributes.py),
0 for a withheld one; `fidelity_of_other_captions` is the same figure for captions of other concepts.
`unflagged_changed` is the share of never-planted captions' pictures that change at all, of those that a guard calls
clean when nothing is done, and of all.

A rate for which there are too few negatives is null. Intervals (95%) redraw whole concepts or captions, of which there
are as many as `clusters` says; of few clusters an interval says little. That of `fpr_met` holds the chance of the
judged captions, not that of the references which the threshold comes from. What is
generated is kept in .benchmarks-cache, so an interrupted run goes on where it was.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from attributes import Classifier, attributes, ceiling, shown, trained
from common import Start, kept, place, print_json, progress
from first_look import entries_and_prompts, ordinary
from torch import Tensor

from cryptomnesia import Calibration, Rephrasing, Sampling, StabilityRule, generate, guard, stabilize
from cryptomnesia.detectors import DETECTORS
from cryptomnesia.mitigations import Rule
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.bundle import control_captions
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.planted import TOP_RUNG, plant
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.statistics import auc, clustered, tpr_at_fpr
from cryptomnesia.statistics import rate as share
from cryptomnesia.tracing.trajectory import Norms, Trajectory, joined

SOLVERS = ("ddim", "pndm", "euler", "euler-ancestral", "heun", "dpm++", "unipc", "lms")
REPORTED = ("drift", "stability", "guidance-mean")
"""The default detector, the published one, and the strongest of the peers."""
DETECTOR = REPORTED[0]
"""That of the guard."""
REFERENCES = 150
"""For the solvers whose calibration does not come with the bundled model."""
NEGATIVES = {"ddim": 1000}
OTHER_NEGATIVES = 200
HARD_SEEDS = {"ddim": 7}
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
class Setup:
    """A solver on the bundled model."""

    solver: str
    pipe: Any
    sampling: Sampling
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
        chosen = np.array([each == kind for each in self.kinds], dtype=bool)
        running = {name: values[chosen] for name, values in self.running.items()}
        flagged = {name: values[chosen] for name, values in self.flagged.items()}
        return Group(list(compress(self.ids, chosen)), [kind] * int(chosen.sum()), running, flagged)


def main() -> None:
    """Measure and print JSON."""
    with progress() as start:
        figures = measure(start)
    print_json(figures)


def measure(start: Start) -> dict[str, Any]:
    """All figures."""
    manifest = Manifest.load(BUNDLE)
    concepts = plant(manifest.seed)
    figures: dict[str, Any] = {"rate": RATE, "auc": {}, "tpr_at_1pct": {}, "tpr_at_0.1pct": {}, "fpr_met": {}}
    images: dict[str, dict[str, int]] = {}
    clusters: dict[str, dict[str, int]] = {}
    for solver in SOLVERS:
        setup = calibrated(solver, manifest, start)
        rungs = {
            rung: [e for e in manifest.entries if e.planted and e.exposures == rung]
            for rung in sorted({e.exposures for e in manifest.entries if e.planted})
            if solver == "ddim" or rung == TOP_RUNG
        }
        positive = {
            rung: scored(setup, f"rung {rung}", *entries_and_prompts(own), first_seed=5_000_000 + 10_000 * rung)
            for rung, own in rungs.items()
        }
        unplanted = control_captions("evaluation", NEGATIVES.get(solver, OTHER_NEGATIVES), concepts, seed=manifest.seed)
        negative = {"never_planted": scored(setup, "never planted", *ordinary(unplanted), first_seed=6_000_000)}
        for number, kind in enumerate(HARD, start=1):
            own = [e for e in manifest.entries if e.kind == kind]
            wanted = entries_and_prompts(own, HARD_SEEDS.get(solver, OTHER_HARD_SEEDS))
            negative[kind] = scored(setup, kind, *wanted, first_seed=6_000_000 + 100_000 * number)
        if solver == "ddim":
            figures["by_rung"] = {
                str(rung): {against: compared(own, others) for against, others in negative.items()}
                for rung, own in positive.items()
            }
            figures["by_evaluation"] = by_evaluation(positive[TOP_RUNG], negative["never_planted"])
            draw(figures["by_evaluation"])
            figures |= mitigation(setup, unplanted[:OTHER_NEGATIVES])
        for name, statistic in STATISTICS.items():
            if name == "tpr_at_0.1pct" and len(unplanted) < 1000:
                continue
            figures[name][solver] = {
                detector: {
                    kind: {
                        against: asdict(clustered(statistic, own.scores(detector), others.scores(detector)))
                        for against, others in negative.items()
                        if name != "tpr_at_0.1pct" or against == "never_planted"
                    }
                    for kind in ("verbatim", "template")
                    if (own := positive[TOP_RUNG].of(kind)).ids
                }
                for detector in REPORTED
            }
        figures["fpr_met"][solver] = {
            detector: {
                against: asdict(share(by(others.ids, others.flagged[detector]))) for against, others in negative.items()
            }
            for detector in REPORTED
        }
        groups = {"top_rung": positive[TOP_RUNG], **negative}
        images[solver] = {name: len(group.ids) for name, group in groups.items()}
        images[solver]["references"] = setup.calibration.prompts
        clusters[solver] = {name: len(set(group.ids)) for name, group in groups.items()}
    return {**figures, "images": images, "clusters": clusters}


def calibrated(solver: str, manifest: Manifest, start: Start) -> Setup:
    """The bundled model with a solver, and what is usual then."""
    pipe = load_pipeline("bundled", scheduler=solver, device="cpu")
    manifest.check(pipe)
    sampling = Sampling(manifest.steps, manifest.guidance)
    if solver == "ddim":
        path = BUNDLE / "calibration.safetensors"
    else:
        captions = control_captions("calibration", REFERENCES, plant(manifest.seed), seed=manifest.seed)
        path = place(f"{solver} calibration", setup=fingerprint(pipe, sampling), prompts=captions)
        if not path.exists():
            tell = start(f"{solver}: calibration", REFERENCES)
            Calibration.fit(pipe, captions, sampling, batch_size=BATCH, progress=tell).save(path)
    calibration = Calibration.load(path)
    calibration.check(pipe, sampling)
    return Setup(solver, pipe, sampling, manifest, calibration, start)


def scored(setup: Setup, what: str, entries: Sequence[Entry | None], prompts: list[str], first_seed: int) -> Group:
    """One image per prompt, with its scores."""

    def make() -> tuple[dict[str, Any], dict[str, Tensor]]:
        seeds = range(first_seed, first_seed + len(prompts))
        tell = setup.start(f"{setup.solver}: {what}", len(prompts))
        made = generate(setup.pipe, prompts, seeds, setup.sampling, batch_size=BATCH, decode=False, progress=tell)
        whole = joined([batch.trajectory for batch in made])
        return {"timesteps": whole.timesteps, "complete": whole.complete}, vars(whole.norms)

    about, norms = kept(f"{setup.solver} {what}", make, **decided_by(setup), prompts=prompts, first_seed=first_seed)
    trajectory = Trajectory(
        tuple(about["timesteps"]), Norms(**norms), {}, torch.empty(len(prompts), 0), about["complete"]
    )
    detectors = {name: make_detector(setup.calibration.reference) for name, make_detector in DETECTORS.items()}
    return Group(
        [prompt if entry is None else entry.id for entry, prompt in zip(entries, prompts, strict=True)],
        [None if entry is None else entry.kind for entry in entries],
        {name: detector.running(trajectory).numpy() for name, detector in detectors.items()},
        {
            name: (setup.calibration.p_value(name, detector.score(trajectory)) <= RATE).numpy()
            for name, detector in detectors.items()
        },
    )


def decided_by(setup: Setup) -> dict[str, Any]:
    """What generations depend on, besides prompts and seeds."""
    return {"setup": setup.calibration.fingerprint}


def mitigation(setup: Setup, unplanted: list[str]) -> dict[str, Any]:
    """Replication, fidelity and side effects with nothing, the published rule and ours."""
    manifest = setup.manifest
    by_id = {concept.id: concept for concept in plant(manifest.seed)}
    listed, prompts = entries_and_prompts(
        [e for e in manifest.entries if e.planted and e.exposures == TOP_RUNG], MITIGATED_SEEDS
    )
    entries = [e for e in listed if e is not None]
    ids = [e.id for e in entries]
    told = torch.stack([torch.from_numpy(attributes(by_id[each].description)).float() for each in ids])
    # every caption stands beside that of a concept five places on
    others = told.roll(5 * MITIGATED_SEEDS * len(entries[0].captions), dims=0)
    classifier = Classifier()
    classifier.load_state_dict(kept("classifier", lambda: ({}, trained().state_dict()))[1])
    hits: dict[str, np.ndarray] = {}
    fidelity: dict[str, np.ndarray] = {}
    chance: dict[str, float] = {}
    actions: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    plain, _, clean = guarded(setup, "none never planted", None, unplanted, 7_100_000)
    for name, rule in {"none": None, "published": StabilityRule(), "ours": Rephrasing()}.items():
        images, taken, _ = guarded(setup, f"{name} planted", rule, prompts, 7_000_000)
        hits[name] = np.array(
            [
                bool(replicates(image.permute(1, 2, 0).numpy(), manifest.image(e), manifest.mask(e)))
                for image, e in zip(images, entries, strict=True)
            ]
        )
        # what was withheld shows nothing of its caption
        returned = np.array([action != "withheld" for action in taken])
        fidelity[name] = shown(classifier, images, told) * returned
        chance[name] = float((shown(classifier, images, others) * returned).mean())
        actions[name] = {what: taken.count(what) for what in ("none", "mitigated", "withheld")}
        images, _, _ = guarded(setup, f"{name} never planted", rule, unplanted, 7_100_000)
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
    setup: Setup, what: str, rule: Rule | None, prompts: list[str], first_seed: int
) -> tuple[Tensor, list[str], np.ndarray]:
    """Of the user's own calls: images (n, 3, 64, 64), what was done about each, and whether it was called clean (n,).

    Without a rule a guard observes. The published rule is measured as it is, every image being returned, ours
    through the guard.
    """
    pipe, sampling = setup.pipe, setup.sampling

    def make() -> tuple[dict[str, Any], dict[str, Tensor]]:
        tell = setup.start(what, len(prompts))
        images, actions, clean = [], [], []
        pipe.set_progress_bar_config(disable=True)
        published = (
            stabilize(pipe, setup.calibration.reference, rule) if isinstance(rule, StabilityRule) else nullcontext()
        )
        settings: dict[str, Any] = {"policy": "mitigate", "rule": rule} if isinstance(rule, Rephrasing) else {}
        with guard(pipe, setup.calibration, detector=DETECTOR, rate=RATE, **settings) as guarding, published:
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
                actions += [verdict.action for verdict in guarding.verdicts]
                clean += [verdict.clean for verdict in guarding.verdicts]
                tell(begin + len(some))
        return {"actions": actions, "clean": clean}, {"images": torch.cat(images)}

    calibration = hashlib.sha256((BUNDLE / "calibration.safetensors").read_bytes()).hexdigest()
    decides = {
        "calibration": calibration,
        "rule": repr(rule),
        "rate": RATE,
        "detector": DETECTOR,
        "prompts": prompts,
        "seed": first_seed,
    }
    about, tensors = kept(what, make, **decided_by(setup), **decides)
    return tensors["images"], about["actions"], np.array(about["clean"], dtype=bool)


def compared(positive: Group, negative: Group) -> dict[str, Any]:
    """AUC and TPR at 1% of every detector for each kind of planted concept against `negative`."""
    return {
        kind: {
            name: {
                detector: asdict(
                    clustered(STATISTICS[name], own.scores(detector), negative.scores(detector), draws=FEW_DRAWS)
                )
                for detector in DETECTORS
            }
            for name in ("auc", "tpr_at_1pct")
        }
        for kind in ("verbatim", "template")
        if (own := positive.of(kind)).ids
    }


def by_evaluation(positive: Group, negative: Group) -> dict[str, dict[str, list[float]]]:
    """AUC of every detector's running score after each evaluation, with its interval."""
    curves: dict[str, dict[str, list[float]]] = {}
    for name, values in positive.running.items():
        estimates = [
            clustered(auc, positive.scores(name, k), negative.scores(name, k), draws=FEW_DRAWS)
            for k in range(values.shape[1])
        ]
        curves[name] = {part: [getattr(each, part) for each in estimates] for part in ("value", "low", "high")}
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
    return [np.array(own) for own in grouped.values()]


if __name__ == "__main__":
    main()
