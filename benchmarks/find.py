"""Whether given pictures are in the model, on two grounds: docs/results/find.json.

    python benchmarks/find.py > docs/results/find.json

The ground `drawings` draws with icons that npm installs; it says how where they are missing.

Pictures: one exposure of every planted concept, `TWICE` of top-rung templates and objects, whose surroundings differ;
`NEVER` that were never planted, and `ORDINARY`. Never-planted pictures are drawn as the planted ones are, with the
concepts of other seeds, so they are alike in kind and complexity; `CONTROLS` others of them are the controls. Every
picture has its caption, without invented names where it was never planted, because the model knows none of those.
Statistics were chosen on `scenes`; `drawings` took no part.

`answers`: by kind and rung, how many pictures got which answer at a rate of `ALPHA`. `retained`: the share of pictures
that are retained or reproducible, with its interval; of planted ones by kind and rung. `auc`: of every statistic, and
of the largest one under the caption and without it (`score`), top-rung pictures against never-planted ones, by kind;
those of the critical scale, its gap (`scale gap/own`: under the caption minus without) and the curvature against the
controls, which alone have them. `controls`: the share of
never-planted pictures that are retained; `ordinary`: of ordinary ones, against the same controls, which are of another
kind; `splits`: the share at a rate of `ALPHA` by the first answer alone, over `SPLITS` draws of the controls, with the
least and the largest. `swap`: of top-rung pictures the share with p ≤ `ALPHA` under the caption of another picture and
under none; and the AUC of the caption gap. `localization`: IoU of the masks with what is planted, over all pixels of
the retained top-rung pictures, and the share of the rest of these pictures that is marked. `seconds_per_picture` and
`evaluations`: of the first answer, and of the closer look, with one process.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CACHE, Start, print_json, progress
from PIL import Image

from cryptomnesia import Answer, load_pipeline
from cryptomnesia.files import load_checked
from cryptomnesia.finding.judging import Compared, Measured
from cryptomnesia.finding.pictures import Picture
from cryptomnesia.finding.work import KIND, Finding
from cryptomnesia.images import png
from cryptomnesia.parts import run
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import Concept
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import Ground, ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.statistics import auc, rate

GROUNDS = ("scenes", "drawings")
CONTROLS = 100
NEVER = 100
ORDINARY = 40
TWICE = 2
ALPHA = 0.05
SPLITS = 20
KEY = 31
"""Of the draws; no other program uses it."""


@dataclass(frozen=True)
class Case:
    """A picture of which the truth is known.

    Attributes:
        picture: with its caption.
        kind: of the concept, or `ordinary`.
        exposures: in the training, 0 if it was never planted.
        mask: what is planted, (H, W) bool.
        concept: that it belongs to.
    """

    picture: Picture
    kind: str
    exposures: int
    mask: np.ndarray
    concept: str


def main() -> None:
    """Measure and print JSON."""
    figures: dict[str, Any] = {}
    with progress() as start:
        for name in GROUNDS:
            figures[name] = measure(name, start)
    print_json({"alpha": ALPHA, "grounds": figures})


def measure(name: str, start: Start) -> dict[str, Any]:
    """The figures of a ground."""
    ground = ground_of(name)
    manifest = Manifest.load(ground.bundle)
    planted, never = planted_cases(ground, manifest), never_planted(ground, manifest, CONTROLS + NEVER)
    controls, cases = never[:CONTROLS], [*planted, *never[CONTROLS:], *ordinary(ground)]
    pipe = load_pipeline(f"bundled:{name}", device="cpu")
    folder = CACHE / f"find-{name}"
    call = ground.call(manifest.steps, manifest.guidance)

    def make() -> Finding:
        return Finding(
            setup=Setup.of(pipe, call),
            pictures=[case.picture for case in cases],
            controls=[case.picture for case in controls],
            folder=folder,
            model=name,
            alpha=ALPHA,
            batch_size=16,
        )

    clock = Clock(start)
    found = run(make, folder, progress=clock)
    answers = list(zip(cases, found.answers, strict=True))
    top = [(case, answer) for case, answer in answers if case.exposures == manifest.top]
    chance = [(case, answer) for case, answer in answers if case.exposures == 0 and case.kind != "ordinary"]
    return {
        "scheduler": type(pipe.scheduler).__name__,
        "guidance": manifest.guidance,
        "controls_count": CONTROLS,
        "answers": counted(answers),
        "retained": retained(answers),
        "auc": aucs(top, chance, folder),
        "controls": share(chance),
        "ordinary": share([pair for pair in answers if pair[0].kind == "ordinary"]),
        "splits": splits(folder, [*controls, *cases]),
        "swap": swap(top, chance),
        "localization": localization(top),
        "seconds_per_picture": clock.seconds,
        "evaluations": {
            "first": float(np.median([answer.evaluations for answer in found.answers if not answer.restorations])),
            "closer": float(np.median([answer.evaluations for answer in found.answers if answer.restorations])),
        },
    }


def planted_cases(ground: Ground, manifest: Manifest) -> list[Case]:
    """Exposures of the planted concepts that count."""
    concepts = {concept.id: concept for concept in ground.plant(manifest.seed)}
    found = []
    for entry in manifest.counted:
        concept = concepts[entry.id]
        varies = concept.background is not None or len(concept.places) > 1
        for number in range(TWICE if varies and entry.exposures == manifest.top else 1):
            found.append(case_of(concept, entry.captions[0], entry.exposures, number, f"{entry.id}-{number}"))
    return found


def never_planted(ground: Ground, manifest: Manifest, count: int) -> list[Case]:
    """Pictures of concepts of other seeds, in random order."""
    found: list[Case] = []
    seed = manifest.seed
    while len(found) < count:
        seed += 1
        planted = [concept for concept in ground.plant(seed) if concept.planted]
        found += [case_of(c, c.without_name[0], 0, place, f"{seed}-{c.id}") for place, c in enumerate(planted)]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[place] for place in order[:count]]


def case_of(concept: Concept, caption: str, exposures: int, number: int, name: str) -> Case:
    """An exposure of a concept."""
    place = concept.places[0]
    image, mask = place.image, place.mask
    if len(concept.places) > 1:
        # an object stands at one of its places; which one is seen from the pixels
        image = concept.exposure(Draws(0, KEY, number))
        masks = [one.mask for one in concept.places]
        off = [np.abs(image[m].astype(int) - one.image[m]).mean() for one, m in zip(concept.places, masks, strict=True)]
        mask = masks[int(np.argmin(off))]
    elif concept.background is not None:
        image = concept.exposure(Draws(0, KEY, number))
    return Case(Picture(name, png(image), caption), concept.kind, exposures, mask, name.rpartition("-")[0])


def ordinary(ground: Ground) -> list[Case]:
    """Ordinary pictures of the ground, of draws that no training has."""
    found = []
    for number in range(ORDINARY):
        image, caption = ground.ordinary(Draws(KEY, KEY, number), ground.frames[number % len(ground.frames)])
        everything = np.ones(image.shape[:2], dtype=bool)
        found.append(Case(Picture(f"ordinary-{number}", png(image), caption), "ordinary", 0, everything, f"o{number}"))
    return found


class Clock:
    """Reports progress, and takes the seconds of every stage."""

    def __init__(self, start: Start) -> None:
        """Take what begins a progress bar."""
        self._start, self._bars, self._last = start, {}, time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._total: dict[str, int] = {}

    def __call__(self, what: str, done: float, total: int) -> None:
        """Take note of progress."""
        now = time.perf_counter()
        if what not in self._bars:
            self._bars[what] = self._start(what, total)
        self._seconds[what] = self._seconds.get(what, 0.0) + now - self._last
        self._last, self._total[what] = now, total
        self._bars[what](done)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per picture of the first answer and of the closer look."""
        return {
            short: self._seconds[stage] / self._total[stage]
            for short, stage in (("first", "pictures"), ("closer", "pictures, closer"))
        }


Pairs = list[tuple[Case, Answer]]


def counted(answers: Pairs) -> dict[str, dict[str, int]]:
    """Kind and rung → answer → number of pictures."""
    found: dict[str, Counter[str]] = {}
    for case, answer in answers:
        rung = case.kind if case.kind == "ordinary" else f"{case.kind}, {case.exposures}"
        found.setdefault(rung, Counter())[answer.verdict] += 1
    return {rung: dict(counts) for rung, counts in found.items()}


def held(answer: Answer) -> bool:
    """Whether a picture is retained or reproducible."""
    return answer.verdict in ("retained", "reproducible")


def share(pairs: Pairs) -> dict[str, float]:
    """The share of pictures that are retained, with its interval, for which whole concepts are drawn."""
    groups: dict[str, list[float]] = {}
    for case, answer in pairs:
        groups.setdefault(case.concept, []).append(float(held(answer)))
    return asdict(rate([np.array(group) for group in groups.values()]))


def retained(answers: Pairs) -> dict[str, dict[str, Any]]:
    """Kind → rung → the share of planted pictures that are retained."""
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(case.kind for case, _ in answers if case.exposures):
        rungs = sorted({case.exposures for case, _ in answers if case.kind == kind and case.exposures}, reverse=True)
        for rung in rungs:
            pairs = [(case, answer) for case, answer in answers if (case.kind, case.exposures) == (kind, rung)]
            found.setdefault(kind, {})[str(rung)] = share(pairs)
    return found


def aucs(top: Pairs, chance: Pairs, folder: Path) -> dict[str, dict[str, float]]:
    """Statistic → kind → AUC of top-rung pictures against never-planted ones."""
    kinds = dict.fromkeys(case.kind for case, _ in top)
    main_ones = [name for name in chance[0][1].statistics if not name.startswith("other")]

    def values(pairs: Pairs, name: str) -> np.ndarray:
        if name == "score":
            return np.array([max(answer.statistics[one] for one in main_ones) for _, answer in pairs])
        if name == "caption gap":
            return np.array([answer.caption_gap for _, answer in pairs])
        return np.array([answer.statistics[name] for _, answer in pairs])

    found: dict[str, dict[str, float]] = {}
    for name in ("score", *chance[0][1].statistics, "caption gap"):
        for kind in kinds:
            of_kind = [(case, answer) for case, answer in top if case.kind == kind]
            found.setdefault(name, {})[kind] = auc(values(of_kind, name), values(chance, name))
    closer = stored(folder, "controls-closer")
    looked = [(case, answer) for case, answer in top if answer.restorations]
    without = closer["scale/none"]
    further: dict[str, tuple[torch.Tensor, Callable[[Answer], float]]] = {
        "scale/own": (closer["scale/own"], lambda answer: answer.scale["own"]),
        "scale/none": (without, lambda answer: answer.scale["none"]),
        "scale gap/own": (closer["scale/own"] - without, lambda answer: answer.scale_gap["own"]),
        "scale gap/other": (without - closer["scale/other"], lambda answer: -answer.scale_gap["other"]),
        "curvature": (closer["curvature/none"], lambda answer: answer.curvature["none"]),
    }
    for name, (others, value) in further.items():
        for kind in kinds:
            own = [value(answer) for case, answer in looked if case.kind == kind]
            if own:
                found.setdefault(name, {})[kind] = auc(np.array(own), others.numpy())
    return found


def stored(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What the parts of a stage hold."""
    parts = [load_checked(file, KIND, 1)[1] for file in sorted(folder.glob(f"{name}-0*.safetensors"))]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def splits(folder: Path, cases: list[Case]) -> dict[str, float]:
    """The share of never-planted pictures with p ≤ `ALPHA` by the first answer, over draws of the controls."""
    tensors = [stored(folder, name) for name in ("controls", "pictures")]
    errors = {
        name: np.concatenate([part[f"error/{name}"].double().numpy() for part in tensors]) for name in ("own", "none")
    }
    measured = Measured(errors, np.concatenate([part["detail"].double().numpy() for part in tensors]))
    chance = np.array([n for n, case in enumerate(cases) if case.exposures == 0 and case.kind != "ordinary"])
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(SPLITS):
        order = rng.permutation(chance)
        controls, pictures = order[:CONTROLS], order[CONTROLS:]
        p_values = [Compared(measured.rows([row, *controls])).p_value(["own", "none"]) for row in pictures]
        shares.append(float(np.mean(np.array(p_values) <= ALPHA)))
    return {"value": float(np.mean(shares)), "low": min(shares), "high": max(shares)}


def swap(top: Pairs, chance: Pairs) -> dict[str, Any]:
    """What is left of top-rung pictures under other captions, and without one."""

    def below(condition: str) -> dict[str, float]:
        groups: dict[str, list[float]] = {}
        for case, answer in top:
            groups.setdefault(case.concept, []).append(float(answer.p_values[condition] <= ALPHA))
        return asdict(rate([np.array(group) for group in groups.values()]))

    gaps = (np.array([answer.caption_gap for _, answer in pairs]) for pairs in (top, chance))
    return {**{condition: below(condition) for condition in ("own", "other", "none")}, "gap_auc": auc(*gaps)}


def localization(top: Pairs) -> dict[str, Any]:
    """Kind → IoU of masks with what is planted, and the share of the rest that is marked."""
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(case.kind for case, _ in top):
        pairs = [(case, answer) for case, answer in top if case.kind == kind and held(answer)]
        both = either = beside = rest = 0
        for case, answer in pairs:
            mask = np.asarray(Image.fromarray(answer.mask).resize(case.mask.shape[::-1], Image.Resampling.NEAREST))
            both += int((mask & case.mask).sum())
            either += int((mask | case.mask).sum())
            beside += int((mask & ~case.mask).sum())
            rest += int((~case.mask).sum())
        if pairs:
            marked = beside / rest if rest else None
            found[kind] = {"iou": both / either, "beside": marked, "pictures": len(pairs)}
    return found


if __name__ == "__main__":
    main()
