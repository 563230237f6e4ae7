"""Maps on the bundled model, judged by its exact masks: docs/results/curvature.json.

    python benchmarks/curvature.py > docs/results/curvature.json

Reported pictures: every wording of the top rung's concepts, two seeds each, those that reproduce the planted pixels;
and never-planted captions. Truth: the mask of a template, all ones for verbatim concepts, all zeros for never-planted
captions. All maps come from the one generation of each picture. The top rung's first four templates are not among
them: with captions of their own they are the selection, on which defaults and winners are chosen. (Earlier figures had
been made on all twelve, with a threshold that 1% of ordinary pixels exceed. They had shown that Δh gives no threshold
for a mask, which is why `collapse` was looked for.)

Protocols, both at 256×256 pixels. `paper`: log1p, scaled to [0, 1] over the whole set, and of 101 thresholds the best
for each figure. `honest`: the threshold that 5% of the pixels of 150 reference captions exceed, fixed beforehand. IoU
is over all pixels of a set, mIoU the mean over pictures (an empty union counts 1). Intervals (95%) redraw whole
concepts and captions.

`detection_auc`, `detection_tpr_at_1pct`: the spatial mean of the map as a score, reproduced pictures against
never-planted captions. `by_rate`: the honest IoU where another share of ordinary pixels exceeds the threshold, on
reported templates, and of `collapse` on the selection. `masks`: the honest IoU on reported templates of the masks that
`localize` makes, at the latents' resolution, where a third of the references fixes the threshold.

`hard_negatives`: pictures of which nothing was planted, of captions with an invented name, of captions that fix most
pixels, and of frequent ones: the share of pixels above the threshold, and the share of pictures whose fraction has a
p-value of at most 5%. Of ordinary captions both are 5%.

`candidates`: what was tried beyond single maps: other evaluations, `collapse` without its filter, combinations in
units of each map's own threshold, and blurs, as honest IoU on the selection and on reported templates. `best` is the
winner on the selection, `best_single` that among the maps that others have published, and `best_single_anywhere` among
these with other evaluations and blurs. (`collapse` without its filter is `curvature` at that evaluation, in other
units.) `versus_…` is the IoU of `collapse` minus that of the other map, on the same redrawn concepts.

`detectors`: the same mean as a detector, as `detect --detector collapse` has it: computed in the run, with the same
probes for all images, of reproduced pictures, never-planted captions and the hard negatives; and the share that is
flagged at 1%, with the bundled calibration.

`by_step`, `by_design`, `by_probes`, all on the selection: pixel AUC and honest IoU of maps at other evaluations,
against either baseline or none (an empty caption is the unconditional branch of these runs); how the error of Δh,
before its cut at zero and against the exact diagonal, depends on the number of probes and on how many of them make an
orthogonal set; and the pixel AUC of `collapse` by number of probes.

What is generated is kept in .benchmarks-cache, so an interrupted run goes on where it was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from common import Start, kept, print_json, progress
from first_look import entries_and_prompts, ordinary
from torch import Tensor
from torch.nn.functional import interpolate

from cryptomnesia import Collapse, CurvatureDifference, DiagonalEstimator, load_pipeline
from cryptomnesia.calibration import ReferenceMaps
from cryptomnesia.calibration.masks import smoothed
from cryptomnesia.calibration.stored import resolved, split
from cryptomnesia.detectors import MapMean, MapSignal
from cryptomnesia.images import upsampled
from cryptomnesia.localizers import Localizer, Watched, configured, localizer
from cryptomnesia.localizers.baseline import baseline_for
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.replication import replicates
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

STEPS = (0, 5, 10, 15, 20, 30, 40, 45, 49, 50)
"""Of 51; the last two are those at which the published maps are read."""
STEPPED = ("curvature", *DIFFERENCES)
COLLAPSE_STEPS = (5, 10, 15, 20, 30)
BY_STEP = {
    **{f"{name} at {step}": configured(localizer(name), step=step) for name in STEPPED for step in STEPS},
    **{
        f"{name} at {step}": configured(localizer(name), step=step)
        for name in ("collapse", "collapse-checkpoint")
        for step in COLLAPSE_STEPS
    },
}
EARLY = {
    "curvature-difference at 0.1": configured(localizer("curvature-difference"), step=0.1),
    "score-difference at 0": configured(localizer("score-difference"), step=0),
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
SIGNALS = [MapSignal(localizer(name)) for name in ground_of("scenes").detectors]
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
class Subject:
    """The bundled model with its less-trained checkpoint, the truth about it, and how progress is shown."""

    setup: Setup
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
        chosen = [one == kind for one in self.kinds]
        maps = {label: values[torch.tensor(chosen, dtype=torch.bool)] for label, values in self.maps.items()}
        return Pictures(list(compress(self.ids, chosen)), [kind] * sum(chosen), self.truth[chosen], maps)

    def __add__(self, other: "Pictures") -> "Pictures":
        maps = {label: torch.cat([self.maps[label], other.maps[label]]) for label in self.maps}
        truth = np.concatenate([self.truth, other.truth])
        return Pictures(self.ids + other.ids, self.kinds + other.kinds, truth, maps)


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
    checkpoint = load_pipeline(str(BUNDLE / "early"), device="cpu")
    setup = Setup.of(pipe, {"num_inference_steps": manifest.steps}, checkpoint)
    subject = Subject(setup, manifest, start)

    def never_planted(purpose: str, count: int) -> tuple[list[Entry | None], list[str]]:
        return ordinary(manifest.control_captions(purpose, count))

    top = [e for e in manifest.entries if e.planted and e.exposures == manifest.top]
    templates = [e for e in top if e.kind == "template"]
    reported = [e for e in top if e not in templates[:HELD_BACK]]
    single = {name: localizer(name) for name in NAMES} | EARLY
    setup.check(single.values())
    chosen_on = pictures(
        subject, "selection", *entries_and_prompts(templates[:HELD_BACK]), 8_500_000, single | BY_STEP, designs=True
    )
    beside = pictures(
        subject, "selection, ordinary", *never_planted("selection", SELECTION_CAPTIONS), 8_600_000, single | BY_STEP
    )
    references = pictures(subject, "references", *never_planted("calibration", REFERENCES), 8_000_000, single)
    planted = pictures(subject, "planted", *entries_and_prompts(reported), 8_100_000, single)
    unplanted = pictures(subject, "never planted", *never_planted("evaluation", NEGATIVES), 8_200_000, single)
    hard = {
        kind: pictures(
            subject,
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
            kind: marked(of_kind.maps["collapse"], references.maps["collapse"]) for kind, of_kind in hard.items()
        },
        "by_step": {
            str(step): {
                label.removesuffix(f" at {step}"): at_a_glance(chosen_on, beside, label)
                for label in BY_STEP
                if label.endswith(f" at {step}")
            }
            for step in STEPS
        },
        "detectors": detected(pipe, {"planted": planted, "never_planted": unplanted, **hard}),
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
    subject: Subject,
    what: str,
    entries: Sequence[Entry | None],
    prompts: list[str],
    first_seed: int,
    localizers: Mapping[str, Localizer],
    *,
    designs: bool = False,
) -> Pictures:
    """Generate, leave out what was planted but is not reproduced, and map the rest.

    With `designs` maps are also estimated by each of `DESIGNS` and `PROBES`.
    """
    setup, manifest = subject.setup, subject.manifest
    decides = {
        "setup": setup.fingerprint,
        "checkpoint": weights_digest(setup.checkpoint),
        "localizers": {label: method.describe() for label, method in localizers.items()},
        "designs": [*map(repr, (*DESIGNS.values(), EXACT)), *PROBES] if designs else None,
        "signals": [signal.describe() for signal in SIGNALS],
    }
    tell = subject.start(what, len(prompts))
    ids, kinds, truths, parts = [], [], [], []
    for begin in range(0, len(prompts), BATCH):
        captions, concepts = prompts[begin : begin + BATCH], entries[begin : begin + BATCH]
        seeds = range(first_seed + begin, first_seed + begin + len(captions))

        def make() -> tuple[dict[str, Any], dict[str, Tensor]]:
            (batch,) = generate(setup, captions, seeds, batch_size=BATCH, keep="all", signals=SIGNALS)  # noqa: B023
            rows = [row for row, entry in enumerate(concepts) if reproduced(manifest, entry, batch.images[row])]  # noqa: B023
            return {"rows": rows}, mapped(setup, batch, rows, localizers, designs=designs) if rows else {}

        about, maps = kept(f"curvature {what}", make, **decides, prompts=captions, first_seed=seeds[0])
        for row in about["rows"]:
            entry = concepts[row]
            ids.append(captions[row] if entry is None else entry.id)
            kinds.append(None if entry is None else entry.kind)
            truths.append(np.zeros((64, 64), bool) if entry is None else manifest.mask(entry))
        parts += [maps] * bool(maps)
        tell(begin + len(captions))
    joined = {label: torch.cat([part[label] for part in parts]) for label in parts[0]} if parts else {}
    return Pictures(ids, kinds, np.array(truths, dtype=bool).reshape(-1, 64, 64), joined)


def reproduced(manifest: Manifest, entry: Entry | None, image: Tensor) -> bool:
    """Whether a planted picture came out; True where none was planted."""
    if entry is None:
        return True
    threshold = ground_of(manifest.ground).threshold
    return bool(replicates(image.permute(1, 2, 0).numpy(), manifest.places(entry), threshold))


def mapped(
    setup: Setup, batch: Batch, rows: list[int], localizers: Mapping[str, Localizer], *, designs: bool
) -> dict[str, Tensor]:
    """Label → maps of pictures of a batch, (n, h, w)."""
    prompts = [batch.prompts[row] for row in rows]
    denoiser = setup.family.denoiser()
    checkpoint = baseline_for(setup, "checkpoint", prompts)
    assert checkpoint is not None

    def first_of(count: int) -> Watched:
        seeds = [batch.seeds[row] for row in rows[:count]]
        trajectory = batch.trajectory.rows(rows[:count])
        return Watched(trajectory, denoiser, prompts=prompts[:count], seeds=seeds, pipe=setup.pipe)

    run = first_of(len(rows))
    maps = {}
    for label, method in localizers.items():
        first = run.trajectory.step(method.evaluations[0])
        baseline = checkpoint.at(first) if method.baseline == "checkpoint" else None
        maps[label] = method.map(replace(run, baseline=baseline)).values
    maps[SHARE] = Collapse().estimate(run).value.relu()
    maps |= {
        f"{MEAN} {name}": values.double().flatten(1).mean(dim=1).float()
        for name, values in run.trajectory.signals.items()
    }
    for probes in PROBES if designs else ():
        maps[f"collapse, {probes} probes"] = Collapse(estimator=DiagonalEstimator(probes=probes)).map(run).values
    if designs:
        few = first_of(min(len(rows), DESIGN_PICTURES // 2))
        for label, estimator in {"exact": EXACT, **{str(key): design for key, design in DESIGNS.items()}}.items():
            maps[label] = CurvatureDifference(estimator=estimator).estimate(few).value
    return maps


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

    def counted_on(subset: Pictures) -> dict[str, Counts]:
        truth = large_truth(subset)
        maps = candidates(subset.maps, units)
        return {name: counts(large(heat) > thresholds[name], truth) for name, heat in maps.items()}

    tried, counted = candidates(templates.maps, units), counted_on(templates)
    chosen = {name: iou(of_selection) for name, of_selection in counted_on(selection).items()}
    best_single, best = max(PUBLISHED, key=chosen.__getitem__), max(tried, key=chosen.__getitem__)
    single = (*PUBLISHED, *EARLY, SHARE)
    anywhere = [*single, *(f"{name}, blurred by {by}" for name in single for by in BLURS)]
    best_anywhere = max(anywhere, key=chosen.__getitem__)
    shown = tuple(dict.fromkeys((*NAMES, best)))

    figures: dict[str, Any] = {"iou": {}, "miou": {}, "accuracy": {}}
    for kind, subset in sets.items():
        maps = candidates(subset.maps, units)
        for name in (*shown, ALL_ONES):
            heat = None if name == ALL_ONES else large(maps[name])
            for protocol, levels in protocols(heat, thresholds.get(name, 0.0), large_truth(subset)).items():
                for figure, estimate in judged(levels, subset.ids, protocol).items():
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
                            by(subset.ids, candidates(subset.maps, units)[name].mean(dim=(1, 2)).numpy())
                            for subset in (planted, unplanted)
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
            name: {"selection": chosen[name], **asdict(clustered(iou, by(templates.ids, of_templates)))}
            for name, of_templates in counted.items()
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


def detected(pipe: Any, sets: Mapping[str, Pictures]) -> dict[str, Any]:
    """Detector → AUC against never-planted captions, and the share of every set that the bundled calibration flags."""
    calibration = resolved(None, pipe)
    figures = {}
    for signal in SIGNALS:
        detector, label = MapMean(signal.localizer), f"{MEAN} {signal.name}"
        scores = {what: by(subset.ids, subset.maps[label].numpy()) for what, subset in sets.items()}
        flagged = {
            what: by(subset.ids, (calibration.p_value(detector, subset.maps[label]) <= FLAGGED).double().numpy())
            for what, subset in sets.items()
        }
        figures[detector.name] = {
            "auc": asdict(clustered(auc, scores["planted"], scores["never_planted"], draws=200)),
            "flagged": {
                what: asdict(clustered(lambda values: float(values.mean()), hits)) for what, hits in flagged.items()
            },
        }
    return figures


def masks(maps: Tensor, references: Tensor) -> np.ndarray:
    """The masks of `localize`, at 256×256."""
    pixels = reference(references).mask(maps, fpr=RATE).pixels.float()
    return interpolate(pixels[:, None], size=(SIDE, SIDE))[:, 0].numpy() > 0


def marked(maps: Tensor, references: Tensor) -> dict[str, Any]:
    """How much of pictures in which nothing is memorized is marked."""
    mask = reference(references).mask(maps, fpr=RATE)
    return {
        "pixels": mask.fraction.mean().item(),
        "pictures_at_5pct": (mask.p_value <= 0.05).double().mean().item(),
        "pictures": len(maps),
    }


def reference(maps: Tensor) -> ReferenceMaps:
    """Reference maps (n, h, w) as a calibration splits them: a third fixes the threshold, the rest is the null."""
    fitting, null = (maps[rows] for rows in split(len(maps)))
    return ReferenceMaps(fitting, null)


def threshold(maps: Tensor, rate: float = RATE) -> float:
    """The value that a share of the pixels of all reference maps exceeds; none are kept back for p-values."""
    return ReferenceMaps(maps, maps).threshold(rate)


def candidates(maps: Mapping[str, Tensor], units: Mapping[str, float]) -> dict[str, Tensor]:
    """All maps by name, (n, h, w), from those that were kept."""
    sharp = {name: maps[name] for name in (*NAMES, *EARLY, SHARE)}
    for label, members in TOGETHER.items():
        stack = torch.stack([maps[name] / units[name] for name in members])
        sharp[f"least of {label}"] = stack.amin(dim=0)
        sharp[f"geometric mean of {label}"] = stack.log().mean(dim=0).exp()
    blurred = {f"{name}, blurred by {by}": smoothed(heat, by) for by in BLURS for name, heat in sharp.items()}
    return sharp | blurred


def at_a_glance(planted: Pictures, ordinary: Pictures, label: str) -> dict[str, float]:
    """Pixel AUC and honest IoU of a map that is blurred by a pixel, judged by the selection's own captions."""
    maps, usual = (smoothed(subset.maps[label], 1.0) for subset in (planted, ordinary))
    counted = counts(large(maps) > threshold(usual), large_truth(planted))
    return {"pixel_auc": pixel_auc(planted, maps)["value"], "iou": iou(counted)}


def by_design(selection: Pictures) -> dict[str, dict[str, float]]:
    """Design → number of probes → relative error, on some of the pictures."""
    errors: dict[str, dict[str, float]] = {}
    for design, probes in DESIGNS:
        estimated, exact = selection.maps[str((design, probes))], selection.maps["exact"]
        error = (estimated - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        errors.setdefault(design, {})[str(probes)] = error.item()
    return errors


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


def large_truth(of: Pictures) -> np.ndarray:
    """Truth at 256×256, (n, 256, 256) bool."""
    return of.truth.repeat(SIDE // 64, axis=1).repeat(SIDE // 64, axis=2)


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
    estimates = {}
    for name, figure in FIGURES.items():
        best = max(range(len(counted)), key=lambda level: figure(counted[level]))
        estimates[name] = asdict(clustered(figure, by(ids, counted[best])))
        if protocol == "paper":
            estimates[name]["threshold"] = best / 100
    return estimates


def versus(first: Counts, second: Counts, ids: list[str]) -> dict[str, float]:
    """The first IoU minus the second, on the same redrawn concepts."""
    both = np.concatenate([first, second], axis=1)
    return asdict(clustered(lambda c: iou(c[:, :3]) - iou(c[:, 3:]), by(ids, both)))


def by(ids: list[str], values: np.ndarray) -> list[np.ndarray]:
    """Values (n, …) grouped by their ids."""
    return [values[[other == one for other in ids]] for one in dict.fromkeys(ids)]


def auc_of(subset: Pictures, label: str) -> float:
    """Mean pixel AUC of a kept map."""
    return pixel_auc(subset, subset.maps[label])["value"]


def pixel_auc(subset: Pictures, maps: Tensor) -> dict[str, float]:
    """Mean AUC over the pixels of each picture, with its interval."""
    upscaled = upsampled(maps, 64, 64).numpy()
    aucs = [auc(heat[truth], heat[~truth]) for truth, heat in zip(subset.truth, upscaled, strict=True)]
    return asdict(clustered(lambda values: float(values.mean()), by(subset.ids, np.array(aucs))))


if __name__ == "__main__":
    main()
