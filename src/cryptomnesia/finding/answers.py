"""What is said of a picture, and no more than what was measured."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Verdict = Literal["reproducible", "retained", "not evidenced", "undecided"]

MEANINGS: Mapping[Verdict, str] = {
    "reproducible": "Under its caption the model makes the picture, or the part that the mask shows, from nothing but "
    "noise; and it tells the picture from noise better than all but a small share of the controls.",
    "retained": "The model tells the picture, or a part of it, from noise better than all but a small share of the "
    "controls. It was not seen to make the picture from nothing but noise.",
    "not evidenced": "The model treats the picture like the controls. That does not show that it was not trained on "
    "the picture: most training pictures leave no such trace.",
    "undecided": "Nothing is said; a note says why.",
}


@dataclass(frozen=True)
class Restoration:
    """What comes back of a picture from one noise level.

    Attributes:
        ratio: σ/α, the noise in units of the picture; ∞ for pure noise.
        seeds: how often it was tried.
        copies: how often a copy came back.
        distance: of the nearest one, relative to the usual distance of other pictures; a copy by pixels at 0.5.
        similarity: of its edges, beyond that of the most similar other picture; a copy by edges above 0.
        controls: share of the controls that come back as near from there, by pixels or by edges.
    """

    ratio: float
    seeds: int
    copies: int
    distance: float
    similarity: float
    controls: float


@dataclass(frozen=True)
class Answer:
    """What was found of a picture.

    Attributes:
        name: of the picture.
        sha256: of its file.
        caption: under which it was looked for, "" if there is none.
        verdict: see `MEANINGS`.
        p_value: how often a picture like the controls would be restored as well, by caption or without.
        p_values: condition → the p-value under that condition alone: under its `own` caption, with `none`, and under
            the caption of an `other` picture; with a base model also `base`, for what the base does not know.
        statistics: name → how much better the picture is restored than controls by a statistic of
            `cryptomnesia.finding.judging`, 1 at about their ninth decile.
        held_by: `caption` if it is held under its caption, `model` if it is held without one, `training` if it is held
            beyond what the base model knows, or several of them; "" where it is not evidenced.
        part: `whole` or `window`: whether the whole picture stands out, or a part of it.
        part_p: how often controls stand out as much within their own masks, by how far and at how many places together.
            It describes the mask of a picture, and decides nothing.
        caption_gap: log error under another caption minus that under its own, in nats; high if the two belong together.
        caption_gap_p: how often controls have as high a gap.
        share: of the picture that the mask holds; on average 5% of a control.
        map: how much better every place is restored than places as detailed, in nats, (h, w).
        mask: where that is more than at 95% of the controls' places, (h, w) bool.
        curve: condition → mean denoising error at every noise level.
        restorations: under its caption, from the least noise on; empty where the first answer was clear.
        restorations_without: without a caption, from much noise on. They describe, and decide nothing.
        restorations_other: likewise under the caption of another picture, which is one of the controls.
        scale: condition → log σ_c of arXiv:2609.39648; empty where it was not measured, as all that follows.
        scale_p: condition → how often controls have as high a one.
        scale_gap: `own` and `other` → log σ_c under that caption minus log σ_c without one. A low one under another
            caption says that the unconditional branch alone holds the picture.
        scale_gap_p: likewise → how often controls have as high a gap under their own captions, or as low a one under
            others.
        scale_map: log σ_c at every place under the caption, (h, w), searched from σ/α = 2 on; (1, 1) and NaN where it
            was not measured.
        scale_within: mean of that within the mask.
        scale_within_p: how often controls have as high a one within their masks.
        curvature: `none` and, with a base model, `base` → mean of the curvature difference at the noised picture, with
            the unconditional branch or the base model as baseline (arXiv:2605.26756).
        curvature_p: likewise → how often controls have as high a one.
        notes: what to know about the picture, in sentences.
        evaluations: of both branches of the network for errors and restorations of this picture alone.
    """

    name: str
    sha256: str
    caption: str
    verdict: Verdict
    p_value: float
    p_values: Mapping[str, float]
    statistics: Mapping[str, float]
    held_by: str
    part: str
    part_p: float
    caption_gap: float
    caption_gap_p: float
    share: float
    map: np.ndarray = field(repr=False)
    mask: np.ndarray = field(repr=False)
    curve: Mapping[str, Sequence[float]] = field(repr=False)
    restorations: Sequence[Restoration] = ()
    restorations_without: Sequence[Restoration] = ()
    restorations_other: Sequence[Restoration] = ()
    scale: Mapping[str, float] = field(default_factory=dict)
    scale_p: Mapping[str, float] = field(default_factory=dict)
    scale_gap: Mapping[str, float] = field(default_factory=dict)
    scale_gap_p: Mapping[str, float] = field(default_factory=dict)
    scale_map: np.ndarray = field(default_factory=lambda: np.full((1, 1), np.nan), repr=False)
    scale_within: float = float("nan")
    scale_within_p: float = float("nan")
    curvature: Mapping[str, float] = field(default_factory=dict)
    curvature_p: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    evaluations: float = 0.0

    @property
    def highest(self) -> float:
        """σ/α of the largest noise from which a copy comes back, ∞ for pure noise; NaN if none does."""
        return max((one.ratio for one in self.restorations if one.copies), default=math.nan)

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values; the caption as its length alone, because it may be private, too."""
        values = {**vars(self), "highest": self.highest}
        for name in ("restorations", "restorations_without", "restorations_other"):
            values[name] = [asdict(one) for one in values[name]]
        values |= {"map": np.round(self.map, 3).tolist(), "mask": self.mask.astype(int).tolist()}
        values["scale_map"] = np.round(self.scale_map, 3).tolist()
        return plain({**values, "caption": len(self.caption)})


@dataclass(frozen=True)
class Found:
    """The answers about some pictures.

    Attributes:
        about: what they depend on, as JSON values.
        answers: one per picture.
        ratios: σ/α of the noise levels of the curves.
        controls: number of controls.
        controls_curve: condition → (low, median, high) of the controls' errors at every level: 5%, 50% and 95%.
        alpha: the rate: a picture that the model was not trained on, and that is like the controls, is called retained
            with this probability at most.
        rate: the largest p-value that is called retained: alpha, or less at a false-discovery rate.
        smallest: the smallest p-value that so many controls allow.
        thumbnails: number of a picture → PNG files: `picture`, and under each of the conditions `own`, `none` and
            `other` what came back, from the least noise on.
    """

    about: Mapping[str, Any]
    answers: Sequence[Answer]
    ratios: Sequence[float]
    controls: int
    controls_curve: Mapping[str, Sequence[Sequence[float]]]
    alpha: float
    rate: float
    smallest: float
    thumbnails: Mapping[int, Mapping[str, Sequence[bytes]]] = field(default_factory=dict, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Verdict → number of pictures."""
        found = Counter(answer.verdict for answer in self.answers)
        return {verdict: found[verdict] for verdict in MEANINGS}

    @property
    def exit_code(self) -> int:
        """1 if a picture is retained or reproducible, else 3 if one is undecided, else 0."""
        if self.counts["retained"] or self.counts["reproducible"]:
            return 1
        return 3 if self.counts["undecided"] else 0

    def to_json(self) -> dict[str, Any]:
        """The answers as JSON values; of the pictures they hold maps and masks alone."""
        return {**self._head(), "pictures": [answer.to_json() for answer in self.answers]}

    @property
    def meanings(self) -> dict[str, str]:
        """What the verdicts mean that there are."""
        return {verdict: meaning for verdict, meaning in MEANINGS.items() if self.counts[verdict]}

    def _head(self) -> dict[str, Any]:
        """What is said of all pictures together, as JSON values."""
        return plain(
            {
                "about": self.about,
                "alpha": self.alpha,
                "rate": self.rate,
                "smallest_p": self.smallest,
                "controls": self.controls,
                "expected_by_chance": self.alpha * len(self.answers),
                "counts": self.counts,
                "meanings": self.meanings,
                "ratios": self.ratios,
                "controls_curve": self.controls_curve,
            }
        )

    def save(self, folder: Path) -> None:
        """Write `found.json`, and an HTML page of every picture."""
        from cryptomnesia.files import replacing, write_whole
        from cryptomnesia.report.found import pages

        with replacing(folder / "found.json") as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.writelines(self._written())
        for name, text in pages(self):
            write_whole(folder / name, text)

    def _written(self) -> Iterator[str]:
        """The answers as the text of a JSON file, one after the other, because maps of many take much memory."""
        head = json.dumps({**self._head(), "pictures": []}, indent=1, allow_nan=False)
        before, after = head.rsplit("]", 1)
        yield before
        for number, answer in enumerate(self.answers):
            text = json.dumps(answer.to_json(), indent=1, allow_nan=False)
            yield f"{',' if number else ''}\n" + "\n".join(f"  {line}" for line in text.split("\n"))
        yield ("\n ]" if self.answers else "]") + after + "\n"


def plain(value: Any) -> Any:
    """A value as JSON holds it: numbers with six digits, None for NaN, and "pure noise" for an infinite σ/α."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating) and np.isposinf(value):
        return "pure noise"
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def page_names(answers: Iterable[Answer]) -> list[str]:
    """The name of the HTML page of every picture: after the first letters of its digest."""
    return [f"picture-{answer.sha256[:12]}.html" for answer in answers]
