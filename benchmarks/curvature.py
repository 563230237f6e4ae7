"""Maps on the bundled model, judged by its exact masks: docs/results/curvature.json.

    python benchmarks/curvature_speed.py > speed.json
    python benchmarks/curvature.py --speed speed.json > docs/results/curvature.json

Reported pictures: every wording of the top rung's concepts, two seeds each, those that reproduce the planted
pixels; and never-planted captions. Truth: the mask of a template, all ones for verbatim concepts, all zeros for
never-planted captions. All maps come from the one generation of each picture. The top rung's first four templates are
not among them: with captions of their own they are the selection, on which defaults and winners are chosen. (Earlier
figures had been made on all twelve, with a threshold that 1% of ordinary pixels exceed. They had shown that Δh gives no
threshold for a mask, which is why `collapse` was looked for.)

Protocols, both at 256×256 pixels. `paper`: log1p, scaled to [0, 1] over the whole set, and of 101
thresholds the best for each figure. `honest`: the threshold that 5% of the pixels of 150 reference
captions exceed, fixed beforehand. IoU is over all pixels of a set, mIoU the mean over pictures (an empty union
counts 1). Intervals (95%) redraw whole concepts and captions.

`detection_auc`, `detection_tpr_at_1pct`: the spatial mean of the map as a score, reproduced pictures against
never-planted captions. `by_rate`: the honest IoU where another share of ordinary pixels exceeds the threshold, on
reported templates, and of `collapse` on the selection. `masks`: the honest IoU on reported templates of the masks that
`localize` makes, at the latents' resolution, a third of the references fixing the threshold.

`hard_negatives`: pictures of which nothing was planted, of captions with an invented name, of captions that fix most
pixels, and of frequent ones: the share of pixels above the threshold, and the share of pictures whose fraction has a
p-value of at most 5%. Of ordinary captions both are 5%.

`candidates`: what was tried beyond single maps: other evaluations, `collapse` without its filter, combinations in units
of each map's own threshold, and blurs, as honest IoU on the selection and on reported templates. `best` is the winner
on the selection, `best_single` that among the maps that others have published, and `best_single_anywhere` among these
with other evaluations and blurs. (`collapse` without its filter is `curvature` at that evaluation, in other units.)
`versus_…` says how much larger the IoU of `collapse` is, on the same redrawn concepts.

`detectors`: the same mean as a detector, as `detect --detector collapse` has it: taken in the run, with probes of its
own, of reproduced pictures, never-planted captions and the hard negatives; the share that is flagged at 1%, with the
bundled calibration.

`by_step`, `by_design`, `by_probes`, all on the selection: pixel AUC and honest IoU of maps at other evaluations,
against either baseline or none (an empty caption is the unconditional branch of these runs); how the error
of Δh, before its cut at zero and against the exact diagonal, depends on the number of probes and on how many of them
make an orthogonal set; and the pixel AUC of `collapse` by number of probes.

What is generated is kept in .benchmarks-cache, so an interrupted run goes on where it was.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Start, kept, print_json, progress
from first_look import entries_and_prompts, ordinary
from torch import Tensor
from torch.nn.functional import interpolate

from cryptomnesia.calibration.masks import smoothed
from cryptomnesia.calibration.scores import Calibration
from cryptomnesia.detectors import SIGNALS
from cryptomnesia.localizers import (
    Collapse,
    CurvatureDifference,
    DiagonalEstimator,
    MapReference,
    Watched,
    end_positions,
    upsampled,
)
from cryptomnesia.localizers.baseline import reading
from cryptomnesia.localizers.methods import Method, check_methods, method
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.bundle import control_captions
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.planted import TOP_RUNG, plant
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.settings import Sampling
from cryptomnesia.statistics import auc, clustered, tpr_at_fpr
from cryptomnesia.tracing.generation import Batch, generate

DIFFERENCES = (
    "curvature-difference",
    "curvature-difference-checkpoint",
    "score-difference",
    "score-difference-checkpoint",
)
PUBLISHED = (*DIFFERENCES, "guidance-map", "curvature", "bright-ending")
NAMES = ("collapse", *PUBLISHED)
ALL_ONES = "all-ones"
SIDE = 256
RATE = 0.05
FLAGGED = 0.01
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
REFERENCES = 150
NEGATIVES = 200
HELD_BACK = 4
"""Templates of the top rung that are the selection: one of every kind of free region."""
SELECTION_CAPTIONS = 48
DESIGN_PICTURES = 16
BATCH = 16

STEPS = (0, 5, 10, 15, 20, 30, 40, 45, 48, 49)
STEPPED = ("curvature", *DIFFERENCES)
COLLAPSE_STEPS = (5, 10, 15, 20, 30)
BY_STEP = {
    **{f"{name} at {step}": method(name, step=step) for name in STEPPED for step in STEPS},
    **{
        f"{name} at {step}": method(name, step=step)
        for name in ("collapse", "collapse-checkpoint")
        for step in COLLAPSE_STEPS
    },
}
EARLY = {
    "curvature-difference at 0.1": method("curvature-difference", step=0.1),
    "score-difference at 0": method("score-difference", step=0),
}
HARD = ("rare_name", "fixed_pixels", "frequent")
HARD_CAPTIONS = 24
"""Of each kind, at most."""
BLURS = (0.5, 1.0)
"""Standard deviations in latent pixels."""
TOGETHER = {
    "both run maps": DIFFERENCES[::2],
    "both checkpoint maps": DIFFERENCES[1::2],
    "both curvature differences": DIFFERENCES[:2],
    "all four differences": DIFFERENCES,
}
SHARE = "collapse without its filter"
MEAN = "mean of"
DESIGNS = {
    (design, probes): DiagonalEstimator(probes=probes, **settings)
    for design, settings in {
        **{f"orthogonal, {group}": {"group": group} for group in (4, 8, 16, 32)},
        "random": {"design": "random"},
    }.items()
    for probes in (8, 16, 32, 64)
    if probes % settings.get("group", 1) == 0
}
PROBES = (8, 16, 32, 64, 128)
EXACT = DiagonalEstimator(engine="exact")

Counts = np.ndarray
"""Pixels in both mask and truth, in either, and judged right, (n, 3)."""


@dataclass(frozen=True)
class Setup:
    """The bundled model."""

    pipe: Any
    other: Any
    sampling: Sampling
    manifest: Manifest
    start: Start


@dataclass(frozen=True)
class Pictures:
    """Generated pictures of one sort.

    Attributes:
        ids: the concept or caption that each belongs to.
        kinds: of the concepts, None for captions without one.
        truth: where they are memorized, (n, 64, 64) bool.
        maps: label → (n, h, w).
    """

    ids: list[str]
    kinds: list[str | None]
    truth: np.ndarray
    maps: dict[str, Tensor]

    def of(self, kind: str) -> "Pictures":
        """Those of one kind of concept."""
        chosen = [each == kind for each in self.kinds]
        maps = {label: values[torch.tensor(chosen, dtype=torch.bool)] for label, values in self.maps.items()}
        return Pictures(list(compress(self.ids, chosen)), [kind] * sum(chosen), self.truth[chosen], maps)

    def __add__(self, other: "Pictures") -> "Pictures":
        maps = {label: torch.cat([self.maps[label], other.maps[label]]) for label in self.maps}
        truth = np.concatenate([self.truth, other.truth])
        return Pictures(self.ids + other.ids, self.kinds + other.kinds, truth, maps)


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=Path, help="what curvature_speed.py printed")
    path = parser.parse_args().speed
    speed = {} if path is None else json.loads(path.read_text())
    headline = {key: speed.pop(key) for key in ("speedup_estimator", "speedup_procedure", "memory_ratio") if speed}
    with progress() as start:
        figures = measure(start)
    print_json({**figures, **headline, "speed": speed})


def measure(start: Start) -> dict[str, Any]:
    """All figures."""
    manifest = Manifest.load(BUNDLE)
    pipe = load_pipeline("bundled", device="cpu")
    manifest.check(pipe)
    other = load_pipeline(str(BUNDLE / "early"), device="cpu")
    setup = Setup(pipe, other, Sampling(manifest.steps, manifest.guidance), manifest, start)
    concepts = plant(manifest.seed)

    def never_planted(purpose: str, count: int) -> tuple[list[Entry | None], list[str]]:
        return ordinary(control_captions(purpose, count, concepts, manifest.seed))

    top = [e for e in manifest.entries if e.planted and e.exposures == TOP_RUNG]
    templates = [e for e in top if e.kind == "template"]
    reported = [e for e in top if e not in templates[:HELD_BACK]]
    single = {name: method(name) for name in NAMES} | EARLY
    chosen_on = pictures(
        setup, "selection", *entries_and_prompts(templates[:HELD_BACK]), 8_500_000, single | BY_STEP, designs=True
    )
    beside = pictures(
        setup, "selection, ordinary", *never_planted("selection", SELECTION_CAPTIONS), 8_600_000, single | BY_STEP
    )
    references = pictures(setup, "references", *never_planted("calibration", REFERENCES), 8_000_000, single)
    planted = pictures(setup, "planted", *entries_and_prompts(reported), 8_100_000, single)
    unplanted = pictures(setup, "never planted", *never_planted("evaluation", NEGATIVES), 8_200_000, single)
    hard = {
        kind: pictures(
            setup,
            kind,
            *ordinary(
                [
                    caption
                    for wording in zip(*(e.captions for e in manifest.entries if e.kind == kind), strict=True)
                    for caption in wording
                ][:HARD_CAPTIONS]
            ),
            8_700_000 + 10_000 * number,
            {"collapse": single["collapse"]},
        )
        for number, kind in enumerate(HARD)
    }
    return {
        **judged_maps(references, planted, unplanted, chosen_on),
        "hard_negatives": {
            kind: marked(own.maps["collapse"], references.maps["collapse"]) for kind, own in hard.items()
        },
        "by_step": {
            str(step): {
                label.removesuffix(f" at {step}"): at_a_glance(chosen_on, beside, label)
                for label in BY_STEP
                if label.endswith(f" at {step}")
            }
            for step in STEPS
        },
        "detectors": detected({"planted": planted, "never_planted": unplanted, **hard}),
        "by_design": by_design(chosen_on),
        "by_probes": {str(probes): auc_of(chosen_on, f"collapse, {probes} probes") for probes in PROBES},
        "counts": {
            "templates": len(planted.of("template").ids),
            "verbatim": len(planted.of("verbatim").ids),
            "never_planted": len(unplanted.ids),
            "references": len(references.ids),
            "selection": len(chosen_on.ids),
        },
    }


def pictures(
    setup: Setup,
    what: str,
    entries: Sequence[Entry | None],
    prompts: list[str],
    first_seed: int,
    methods: Mapping[str, Method],
    *,
    designs: bool = False,
) -> Pictures:
    """Generate, leave out what was planted but is not reproduced, and map the rest.

    With `designs` maps are also estimated by each of `DESIGNS` and `PROBES`.
    """
    check_methods(setup.pipe, setup.sampling, [method(each) for each in NAMES], setup.other)
    decides = {
        "weights": [setup.manifest.weights, weights_digest(setup.other)],
        "sampling": vars(setup.sampling),
        "methods": {label: repr(each) for label, each in methods.items()},
        "designs": [*map(repr, (*DESIGNS.values(), EXACT)), *PROBES] if designs else None,
        "signals": [*map(repr, SIGNALS.values())],
    }
    tell, signals = setup.start(what, len(prompts)), [*SIGNALS.values()]
    ids, kinds, truths, parts = [], [], [], []
    for begin in range(0, len(prompts), BATCH):
        some, own = prompts[begin : begin + BATCH], entries[begin : begin + BATCH]
        seeds = range(first_seed + begin, first_seed + begin + len(some))

        def make() -> tuple[dict[str, Any], dict[str, Tensor]]:
            (batch,) = generate(setup.pipe, some, seeds, setup.sampling, batch_size=BATCH, keep="all", signals=signals)  # noqa: B023
            rows = [row for row, each in enumerate(own) if reproduced(setup, each, batch.images[row])]  # noqa: B023
            return {"rows": rows}, mapped(setup, batch, rows, methods, designs=designs) if rows else {}

        about, maps = kept(f"curvature {what}", make, **decides, prompts=some, first_seed=seeds[0])
        for row in about["rows"]:
            entry = own[row]
            ids.append(some[row] if entry is None else entry.id)
            kinds.append(None if entry is None else entry.kind)
            truths.append(np.zeros((64, 64), bool) if entry is None else setup.manifest.mask(entry))
        parts += [maps] * bool(maps)
        tell(begin + len(some))
    joined = {label: torch.cat([part[label] for part in parts]) for label in parts[0]} if parts else {}
    return Pictures(ids, kinds, np.array(truths, dtype=bool).reshape(-1, 64, 64), joined)


def reproduced(setup: Setup, entry: Entry | None, image: Tensor) -> bool:
    """Whether a planted picture came out; True where none was planted."""
    if entry is None:
        return True
    planted, mask = setup.manifest.image(entry), setup.manifest.mask(entry)
    return bool(replicates(image.permute(1, 2, 0).numpy(), planted, mask))


def mapped(
    setup: Setup, batch: Batch, rows: list[int], methods: Mapping[str, Method], *, designs: bool
) -> dict[str, Tensor]:
    """Label → maps of some pictures of a batch, (n, h, w)."""
    trajectory = batch.trajectory.rows(rows)
    prompts = [batch.prompts[row] for row in rows]
    run = Watched(
        trajectory,
        adapter_for(setup.pipe).denoiser(),
        ends=end_positions(setup.pipe, prompts),
        seeds=[batch.seeds[row] for row in rows],
    )
    early = reading(setup.other, prompts, setup.sampling)
    found = {}
    for label, each in methods.items():
        first = trajectory.step(each.localizer.evaluations[0])
        baseline = early.at(first) if each.baseline == "checkpoint" else None
        watched = Watched(trajectory, run.denoiser, baseline, run.ends, run.seeds)
        found[label] = each.localizer.map(watched)
    found[SHARE] = Collapse().estimate(run).value.relu()
    found |= {f"{MEAN} {name}": values for name, values in trajectory.signals.items()}
    for probes in PROBES if designs else ():
        found[f"collapse, {probes} probes"] = Collapse(estimator=DiagonalEstimator(probes=probes)).map(run)
    if designs:
        few = run.rows(list(range(min(len(rows), DESIGN_PICTURES // 2))))
        for label, estimator in {"exact": EXACT, **{str(key): each for key, each in DESIGNS.items()}}.items():
            found[label] = CurvatureDifference(estimator=estimator).estimate(few).value
    return found


def judged_maps(references: Pictures, planted: Pictures, unplanted: Pictures, selection: Pictures) -> dict[str, Any]:
    """Every figure of every map, and the choice among them."""
    units = {name: threshold(references.maps[name]) for name in NAMES}
    thresholds = {name: threshold(maps) for name, maps in candidates(references.maps, units).items()}
    templates = planted.of("template")
    sets = {
        "templates": templates,
        "templates_and_never_planted": templates + unplanted,
        "all": planted + unplanted,
    }

    def counted_on(own: Pictures) -> dict[str, Counts]:
        truth = large_truth(own)
        maps = candidates(own.maps, units)
        return {name: counts(large(each) > thresholds[name], truth) for name, each in maps.items()}

    tried, counted = candidates(templates.maps, units), counted_on(templates)
    chosen = {name: iou(each) for name, each in counted_on(selection).items()}
    best_single, best = max(PUBLISHED, key=chosen.__getitem__), max(tried, key=chosen.__getitem__)
    single = (*PUBLISHED, *EARLY, SHARE)
    anywhere = [*single, *(f"{name}, blurred by {by}" for name in single for by in BLURS)]
    best_anywhere = max(anywhere, key=chosen.__getitem__)
    shown = tuple(dict.fromkeys((*NAMES, best)))

    figures: dict[str, Any] = {"iou": {}, "miou": {}, "accuracy": {}}
    for kind, own in sets.items():
        maps = candidates(own.maps, units)
        for name in (*shown, ALL_ONES):
            heat = None if name == ALL_ONES else large(maps[name])
            for protocol, found in protocols(heat, thresholds.get(name, 0.0), large_truth(own)).items():
                for figure, estimate in judged(found, own.ids, protocol).items():
                    figures[figure].setdefault(name, {}).setdefault(protocol, {})[kind] = estimate
    return {
        **figures,
        "pixel_auc": {name: pixel_auc(templates, tried[name]) for name in shown},
        **{
            figure: {
                name: asdict(
                    clustered(
                        statistic,
                        *(
                            by(own.ids, candidates(own.maps, units)[name].mean(dim=(1, 2)).numpy())
                            for own in (planted, unplanted)
                        ),
                        draws=200,
                    )
                )
                for name in shown
            }
            for figure, statistic in (("detection_auc", auc), ("detection_tpr_at_1pct", tpr_at_fpr))
        },
        "masks": {
            name: asdict(
                clustered(
                    iou, by(templates.ids, counts(masks(tried[name], references.maps[name]), large_truth(templates)))
                )
            )
            for name in NAMES
        },
        "candidates": {
            name: {"selection": chosen[name], **asdict(clustered(iou, by(templates.ids, own)))}
            for name, own in counted.items()
        },
        "by_rate": {
            str(rate): {
                name: iou(counts(large(tried[name]) > threshold(references.maps[name], rate), large_truth(templates)))
                for name in NAMES
            }
            for rate in RATES
        },
        "by_rate_selection": {
            str(rate): iou(
                counts(
                    large(selection.maps["collapse"]) > threshold(references.maps["collapse"], rate),
                    large_truth(selection),
                )
            )
            for rate in RATES
        },
        "best_single": best_single,
        "best_single_anywhere": best_anywhere,
        "best": best,
        "versus_bright_ending": versus(counted["collapse"], counted["bright-ending"], templates.ids),
        "versus_best_single": versus(counted["collapse"], counted[best_single], templates.ids),
        "versus_best_single_anywhere": versus(counted["collapse"], counted[best_anywhere], templates.ids),
    }


def detected(sets: Mapping[str, Pictures]) -> dict[str, Any]:
    """Detector → AUC against never-planted captions, and the share of every set that the bundled calibration flags."""
    calibration = Calibration.load(BUNDLE / "calibration.safetensors")
    found = {}
    for name in SIGNALS:
        label = f"{MEAN} {name}"
        scores = {what: by(own.ids, own.maps[label].numpy()) for what, own in sets.items()}
        flagged = {
            what: by(own.ids, (calibration.p_value(name, own.maps[label]) <= FLAGGED).double().numpy())
            for what, own in sets.items()
        }
        found[name] = {
            "auc": asdict(clustered(auc, scores["planted"], scores["never_planted"], draws=200)),
            "flagged": {
                what: asdict(clustered(lambda values: float(values.mean()), own)) for what, own in flagged.items()
            },
        }
    return found


def masks(maps: Tensor, references: Tensor) -> np.ndarray:
    """The masks of `localize`, at 256×256."""
    pixels = MapReference.fit(references).mask(maps, rate=RATE).pixels.float()
    return interpolate(pixels[:, None], size=(SIDE, SIDE))[:, 0].numpy() > 0


def marked(maps: Tensor, references: Tensor) -> dict[str, Any]:
    """How much of pictures in which nothing is memorized is marked."""
    found = MapReference.fit(references).mask(maps, rate=RATE)
    return {
        "pixels": found.fraction.mean().item(),
        "pictures_at_5pct": (found.p_value <= 0.05).double().mean().item(),
        "pictures": len(maps),
    }


def threshold(maps: Tensor, rate: float = RATE) -> float:
    """What a share of the pixels of all reference maps exceeds; none are kept back for p-values."""
    return MapReference(maps, maps).threshold(rate)


def candidates(maps: Mapping[str, Tensor], units: Mapping[str, float]) -> dict[str, Tensor]:
    """All maps by name, (n, h, w), from those that were kept."""
    found = {name: maps[name] for name in (*NAMES, *EARLY, SHARE)}
    for label, members in TOGETHER.items():
        stack = torch.stack([maps[name] / units[name] for name in members])
        found[f"least of {label}"] = stack.amin(dim=0)
        found[f"geometric mean of {label}"] = stack.log().mean(dim=0).exp()
    blurred = {f"{name}, blurred by {by}": smoothed(each, by) for by in BLURS for name, each in found.items()}
    return found | blurred


def at_a_glance(planted: Pictures, ordinary: Pictures, label: str) -> dict[str, float]:
    """Pixel AUC and honest IoU of a map that is blurred by a pixel, judged by the selection's own captions."""
    maps, usual = (smoothed(each.maps[label], 1.0) for each in (planted, ordinary))
    counted = counts(large(maps) > threshold(usual), large_truth(planted))
    return {"pixel_auc": pixel_auc(planted, maps)["value"], "iou": iou(counted)}


def by_design(selection: Pictures) -> dict[str, dict[str, float]]:
    """Design → number of probes → relative error, on some of the pictures."""
    found: dict[str, dict[str, float]] = {}
    for design, probes in DESIGNS:
        own, exact = selection.maps[str((design, probes))], selection.maps["exact"]
        error = (own - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        found.setdefault(design, {})[str(probes)] = error.item()
    return found


def protocols(heat: np.ndarray | None, threshold: float, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Protocol → counts at T thresholds, (T, n, 3), of maps (n, 256, 256), or of all ones."""
    if heat is None:
        counted = counts(np.ones_like(truth), truth)[None]
        return {"paper": counted, "honest": counted}
    scaled = np.log1p(heat)
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min())
    return {
        "paper": np.stack([counts(scaled > level, truth) for level in np.linspace(0, 1, 101)]),
        "honest": counts(heat > threshold, truth)[None],
    }


def large(maps: Tensor) -> np.ndarray:
    """Maps (n, h, w) at 256×256."""
    return upsampled(maps, SIDE, SIDE).numpy()


def large_truth(own: Pictures) -> np.ndarray:
    """Truth at 256×256, (n, 256, 256) bool."""
    return own.truth.repeat(SIDE // 64, axis=1).repeat(SIDE // 64, axis=2)


def counts(mask: np.ndarray, truth: np.ndarray) -> Counts:
    """Counts of masks (n, 256, 256)."""
    return np.stack([(mask & truth).sum((1, 2)), (mask | truth).sum((1, 2)), (mask == truth).sum((1, 2))], axis=1)


def iou(counted: Counts) -> float:
    """Over all pixels of the set."""
    return float(counted[:, 0].sum() / max(counted[:, 1].sum(), 1))


FIGURES: dict[str, Callable[[Counts], float]] = {
    "iou": iou,
    "miou": lambda c: float(np.where(c[:, 1] > 0, c[:, 0] / np.maximum(c[:, 1], 1), 1.0).mean()),
    "accuracy": lambda c: float(c[:, 2].sum() / (len(c) * SIDE * SIDE)),
}


def judged(counted: np.ndarray, ids: list[str], protocol: str) -> dict[str, Any]:
    """IoU, mIoU and accuracy with intervals, each at its own best of T thresholds, (T, n, 3)."""
    found = {}
    for name, figure in FIGURES.items():
        best = max(range(len(counted)), key=lambda level: figure(counted[level]))
        found[name] = asdict(clustered(figure, by(ids, counted[best])))
        if protocol == "paper":
            found[name]["threshold"] = best / 100
    return found


def versus(first: Counts, second: Counts, ids: list[str]) -> dict[str, float]:
    """How much larger the first IoU is, on the same redrawn concepts."""
    both = np.concatenate([first, second], axis=1)
    return asdict(clustered(lambda c: iou(c[:, :3]) - iou(c[:, 3:]), by(ids, both)))


def by(ids: list[str], values: np.ndarray) -> list[np.ndarray]:
    """Values (n, …) grouped by their ids."""
    return [values[[each == one for each in ids]] for one in dict.fromkeys(ids)]


def auc_of(own: Pictures, label: str) -> float:
    """Mean pixel AUC of a kept map."""
    return pixel_auc(own, own.maps[label])["value"]


def pixel_auc(own: Pictures, maps: Tensor) -> dict[str, float]:
    """Mean AUC over the pixels of each picture, with its interval."""
    heat = upsampled(maps, 64, 64).numpy()
    aucs = [auc(each[truth], each[~truth]) for truth, each in zip(own.truth, heat, strict=True)]
    return asdict(clustered(lambda values: float(values.mean()), by(own.ids, np.array(aucs))))


if __name__ == "__main__":
    main()
