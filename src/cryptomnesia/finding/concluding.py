"""From the first answer and the closer look to what is said of a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from cryptomnesia.finding.answers import Restoration
from cryptomnesia.finding.judging import Judged, first_p_value, restored_scores
from cryptomnesia.finding.restoring import HALF, NOISY, Start, tries
from cryptomnesia.images import png
from cryptomnesia.statistics import needed_null


@dataclass(frozen=True)
class Look:
    """What the closer look has measured.

    Attributes:
        pictures: name → values of the pictures that were looked at.
        controls: name → values of all controls.
        starts: where restorations began.
    """

    pictures: Mapping[str, Tensor]
    controls: Mapping[str, Tensor]
    starts: Sequence[Start]

    @property
    def evaluations(self) -> int:
        """Evaluations of the network for the restorations of a picture, under all conditions."""
        return sum(tries(name, start) * start.evaluations for name in self.conditions for start in self.starts)

    @property
    def conditions(self) -> list[str]:
        """The conditions under which pictures were restored."""
        return list(dict.fromkeys(name.split("/")[1] for name in self.controls if name.startswith("near/")))

    def near(self, place: int, rows: Sequence[int] | np.ndarray, condition: str, at: int) -> np.ndarray:
        """How near a picture and its controls come back from one noise level, (n, 2, seeds, 2).

        Args:
            place: number of the picture among those that were looked at.
            rows: numbers of the controls.
            condition: under which they were restored.
            at: number of the level.

        Returns:
            As a whole and within the mask, for every seed: distance, and similarity of edges. Masks of controls are
            those that they have beside this picture. NaN where there was no caption.
        """
        name = f"near/{condition}/{at}"
        picture = self.pictures[name][place].numpy()[None]
        return np.concatenate([picture, self.controls[name].numpy()[np.asarray(rows)][:, [0, 1 + place]]])

    def restored(self, place: int, rows: Sequence[int] | np.ndarray) -> float:
        """The p-value of how near a picture comes back from much noise under its caption."""
        levels = [at for at, start in enumerate(self.starts) if start.ratio >= NOISY]
        every = [self.near(place, rows, "own", at) for at in levels]
        nearest = [np.stack([one[..., 0].min(axis=2), one[..., 1].max(axis=2)], axis=-1) for one in every]
        return first_p_value(restored_scores(np.stack(nearest, axis=1)))

    def pngs(self, place: int) -> dict[str, list[bytes]]:
        """`picture`, and condition → what came back, from the least noise on, as PNG files, if they were kept."""
        kept = {name: values[place].numpy() for name, values in self.pictures.items() if name.startswith("kept/")}
        return {name.removeprefix("kept/"): [png(picture) for picture in pictures] for name, pictures in kept.items()}


@dataclass(frozen=True)
class Judgement:
    """Everything that was measured of a picture.

    Attributes:
        judged: the first answer.
        look: the closer look, None if no picture was looked at more closely.
        place: number of the picture among those; None if it is none of them.
        alpha: the rate of the search.
        alike: whether the closer look has treated the picture and its controls alike.
    """

    judged: Judged
    look: Look | None
    place: int | None
    alpha: float
    alike: bool = True

    @property
    def tests(self) -> int:
        """How many p-values there can be: two if the controls are enough for half of the rate each."""
        enough = len(self.judged.rows) >= needed_null(self.alpha / 2)
        from_noise = self.look is None or len(self.look.starts) > 1
        return 2 if enough and self.alike and from_noise else 1

    @property
    def smallest(self) -> float:
        """The smallest p-value that so many controls allow."""
        return self.tests / (1 + len(self.judged.rows))

    @cached_property
    def p_value(self) -> float:
        """How often a picture like the controls would be restored as well; NaN where nothing is said."""
        first = self.judged.p_value
        if math.isnan(first) or self.tests == 1:
            return first
        return min(1.0, 2 * min(first, self.p_values.get("restored", 1.0)))

    @cached_property
    def p_values(self) -> dict[str, float]:
        """Condition → p-value; with the closer look also `restored`."""
        found = dict(self.judged.p_values)
        if self.look is not None and self.place is not None and self.alike:
            found["restored"] = self.look.restored(self.place, self.judged.rows)
        return found

    @property
    def notes(self) -> list[str]:
        """What to know about the closer look, in sentences."""
        if self.look is None or self.place is None:
            return []
        found = []
        if len(self.look.starts) == 1:
            found.append("diffusers has no image-to-image pipeline for the model, so it was made from pure noise alone")
        elif self.tests == 1 and self.alike:
            needed = needed_null(self.alpha / 2)
            found.append(f"what comes back from noise decides nothing here; that takes {needed} controls")
        return found

    @property
    def evaluations(self) -> float:
        """Evaluations of the network for the closer look, without those of the critical scale and the curvature."""
        return 0.0 if self.look is None or self.place is None else float(self.look.evaluations)

    @cached_property
    def restorations(self) -> list[Restoration]:
        """What comes back under the caption from every noise level, of the part that stands out most."""
        return self.restored("own") if self.alike else []

    def restored(self, condition: str) -> list[Restoration]:
        """What comes back under a condition, [] where that was not measured."""
        look, place = self.look, self.place
        if look is None or place is None or condition not in look.conditions:
            return []
        part = int(self.judged.part == "window")
        found = []
        for at, start in enumerate(look.starts):
            if not tries(condition, start):
                continue
            near = look.near(place, self.judged.rows, condition, at)[:, part]
            # a control may have no other caption
            near = near[np.isfinite(near).all(axis=(1, 2)) | (np.arange(len(near)) == 0)]
            if not np.isfinite(near[0]).all():
                return []
            distances, similarities = near[..., 0], near[..., 1]
            copies = (distances[0] <= HALF) | (similarities[0] > 0)
            scores = restored_scores(
                np.stack([distances.min(axis=1), similarities.max(axis=1)], axis=-1)[:, None, None]
            )
            found.append(
                Restoration(
                    ratio=start.ratio,
                    seeds=len(copies),
                    copies=int(copies.sum()),
                    distance=float(distances[0].min()),
                    similarity=float(similarities[0].max()),
                    controls=float((scores[1:] >= scores[0]).mean()),
                )
            )
        return found

    @property
    def made(self) -> bool:
        """Whether most calls from pure noise make a copy, nearer than all but a share `alpha` of the controls come."""
        if not self.restorations:
            return False
        last, count = self.restorations[-1], len(self.judged.rows)
        # the p-value of the nearest one
        return 2 * last.copies > last.seeds and (1 + last.controls * count) / (1 + count) <= self.alpha

    @property
    def further(self) -> dict[str, Any]:
        """The critical scale and the curvature, as `Answer` has them, with how often controls have as high ones."""
        look, place = self.look, self.place
        if look is None or place is None:
            return {}
        captioned = {"own"} if self.alike else set()
        scale = {name: self._values(f"scale/{name}") for name in ("none", "other", *captioned)}
        scale = {name: values for name, values in scale.items() if np.isfinite(values[0])}
        gap = {name: scale[name] - scale["none"] for name in scale if name != "none" and "none" in scale}
        # what is unusual under another caption is a low scale
        signed = {name: -values if name == "other" else values for name, values in gap.items()}
        found: dict[str, Any] = {
            "scale": _first(scale),
            "scale_p": _p_values(scale),
            "scale_gap": _first(gap),
            "scale_gap_p": _p_values(signed),
        }
        if self.alike:
            curvature = {name: self._values(f"curvature/{name}") for name in ("none", "base")}
            curvature = {name: values for name, values in curvature.items() if np.isfinite(values[0])}
            found |= {"curvature": _first(curvature), "curvature_p": _p_values(curvature)}
            found |= self._scale_within()
        return found

    def _scale_within(self) -> dict[str, Any]:
        """The critical scale of places, and its mean within the mask compared with that of controls within theirs."""
        maps = self._values("scale map")
        within = np.array(
            [one[mask].mean() if mask.any() else -np.inf for one, mask in zip(maps, self.judged.masks, strict=True)]
        )
        if not np.isfinite(within[0]):
            return {"scale_map": maps[0]}
        return {"scale_map": maps[0], "scale_within": float(within[0]), "scale_within_p": _p_value(within)}

    def _values(self, name: str) -> np.ndarray:
        """What was measured of the picture and its controls, the picture first, (n, …); NaN where it was not."""
        look, rows = self.look, np.asarray(self.judged.rows)
        if look is None or self.place is None or name not in look.pictures or name not in look.controls:
            return np.full(1 + len(rows), np.nan)
        picture = look.pictures[name][self.place].numpy()[None]
        return np.concatenate([picture, look.controls[name].numpy()[rows]]).astype(np.float64)


def _first(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(one[0]) for name, one in values.items()}


def _p_values(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: _p_value(one) for name, one in values.items()}


def _p_value(values: np.ndarray) -> float:
    """The p-value of the first of n values against those of the others that are known."""
    known = values[~np.isnan(values)]
    return first_p_value(known) if len(known) > 1 else math.nan
