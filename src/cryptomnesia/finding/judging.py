"""From denoising errors to p-values and masks: a picture against controls that are as complex.

A plain picture is restored from noise more easily than a rich one, memorized or not. So a statistic is first freed of
what the complexity of the picture explains: over the picture and its controls together it is fitted by a quadratic
function of the logarithm of the picture's detail, and the residual counts. Residuals are brought to a common unit by
their median and ninth decile. The largest of several such statistics is the score of a picture.

All of this treats the picture and its controls alike, in whatever order they come. So if the picture is exchangeable
with its controls, because the model was trained on none of them, every rank of its score is equally likely, and the
p-value p = (1 + #{controls with a score at least as high}) / (1 + #controls) is at most a with probability a (full
conformal prediction; Vovk et al., 2005).

The statistics are means of log errors over the noise levels: the error under the caption; by how much the caption
lowers it, which is zero where nothing is known of this picture in particular; and the error without a caption. With a
base model it is also by how much the error is below the base model's. Each is taken of the whole picture and, but for
the first, of the window in which it stands out most from windows as detailed. They were chosen on the ground `scenes`.

A mask holds the places where the map of the statistic by which a picture stands out most lies above a threshold. It has
a p-value of its own: by how much the map exceeds its median within the mask, summed up and compared with the same sum
of every control within the control's mask. Maps, thresholds and masks come from the picture and its controls together,
so that this p-value is valid as well. It holds for a picture that is asked about, not among those that have been found
retained already.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy.ndimage import uniform_filter

from cryptomnesia.errors import UsageError
from cryptomnesia.statistics import conformal_p_values, needed_null, rounded_up

WINDOW = 0.5
"""Side of the windows in which pictures are compared, as a share of the shorter side of the latents."""

FINE = 0.125
"""The same of the windows of a map."""

PIXEL_RATE = 0.05
"""Share of the places of all pictures that masks hold."""

_NEEDED = {
    "own": {"own"},
    "caption": {"own", "none"},
    "none": {"none"},
    "other": {"other"},
    "base": {"base"},
}
"""Name of a statistic → the conditions whose errors it takes."""

_LEAST = 1e-12
"""What is added to errors and details before their logarithm is taken."""


@dataclass(frozen=True)
class Measured:
    """What is measured of some pictures.

    Attributes:
        errors: condition → denoising errors, (n, levels, h, w).
        detail: how much the latents vary at every place, (n, h, w).
    """

    errors: Mapping[str, np.ndarray]
    detail: np.ndarray

    def rows(self, rows: Sequence[int] | np.ndarray) -> "Measured":
        """What is measured of some of the pictures."""
        rows = np.asarray(rows, dtype=int)
        return Measured({name: values[rows] for name, values in self.errors.items()}, self.detail[rows])

    def __add__(self, other: "Measured") -> "Measured":
        """The pictures of both, under the conditions that both have."""
        both = [name for name in self.errors if name in other.errors]
        errors = {name: np.concatenate([self.errors[name], other.errors[name]]) for name in both}
        return Measured(errors, np.concatenate([self.detail, other.detail]))


@dataclass(frozen=True)
class Compared:
    """A picture and its controls, the picture first.

    Attributes:
        measured: of all of them.
    """

    measured: Measured

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        """Name → the statistic of every picture, (n,), in units of the usual deviation; high is well restored.

        A name is one of `own`, `caption`, `none`, `other` and `base`, and `whole` or `window`.
        """
        found = {}
        for name in self._known:
            found[f"{name}/whole"] = standardized(freed(self._held(name, None), self._detail))
            if name not in ("own", "other"):
                found[f"{name}/window"] = standardized(self.maps(name, WINDOW).max(axis=(1, 2)))
        return found

    @cached_property
    def _known(self) -> list[str]:
        errors = self.measured.errors
        return [name for name, needed in _NEEDED.items() if needed <= errors.keys()]

    @property
    def conditions(self) -> list[str]:
        """The conditions under which there is a p-value."""
        return [name for name in self._known if name != "caption"]

    def scores(self, conditions: Sequence[str]) -> np.ndarray:
        """The largest statistic of every picture under some conditions, (n,)."""
        return np.max(list(self._under(conditions).values()), axis=0)

    def p_value(self, conditions: Sequence[str]) -> float:
        """The p-value of the picture under some conditions."""
        return first_p_value(self.scores(conditions))

    def strongest(self, conditions: Sequence[str]) -> list[str]:
        """The name of the largest statistic of every picture under some conditions."""
        under = self._under(conditions)
        names = sorted(under)
        return [names[place] for place in np.argmax([under[name] for name in names], axis=0)]

    def shown_by(self, row: int) -> str:
        """What shows best where a picture is held under its caption: what the caption adds, or the error without it."""
        added, without = (self.statistics[f"{name}/whole"][row] for name in ("caption", "none"))
        return "caption" if added >= without else "none"

    def _under(self, conditions: Sequence[str]) -> dict[str, np.ndarray]:
        """The statistics under some conditions; what the caption adds belongs to its own condition."""
        wanted = {*conditions, *(["caption"] if "own" in conditions else [])}
        return {name: values for name, values in self.statistics.items() if name.partition("/")[0] in wanted}

    def gap(self) -> np.ndarray:
        """By how much the own caption lowers the log error compared with another one, (n,)."""
        return self._held("own", None) - self._held("other", None)

    def gap_scores(self) -> np.ndarray:
        """The gaps, freed of what complexity explains, (n,)."""
        return freed(self.gap(), self._detail)

    @property
    def unlike(self) -> str:
        """How the picture's complexity lies outside that of its controls, in words; "" if it lies within.

        Outside, the fit follows the picture, so that no error of it would be unusual.
        """
        own, others = self._detail[0], self._detail[1:]
        slack = others.std()
        if own < others.min() - slack:
            return "plainer"
        return "richer in detail" if own > others.max() + slack else ""

    @cached_property
    def _detail(self) -> np.ndarray:
        return np.log(self.measured.detail.mean(axis=(1, 2)) + _LEAST)

    def maps(self, name: str, window: float = FINE) -> np.ndarray:
        """How much better every place is restored than places as detailed, in nats, (n, h, w)."""
        detail = np.log(pooled(self.measured.detail, WINDOW) + _LEAST)
        held = self._held(name, window)
        return freed(held.ravel(), detail.ravel()).reshape(held.shape)

    def masks(self, name: str) -> np.ndarray:
        """Where every picture is restored better than at all but a share `PIXEL_RATE` of all places, (n, h, w) bool."""
        maps = self.maps(name)
        return maps > np.quantile(maps, 1 - PIXEL_RATE)

    def parts(self, name: str) -> np.ndarray:
        """How much every picture stands out within its mask, (n,): by how much, and at how many places.

        The unit is the distance of the third quartile of all places from their median, which a picture that is held
        does not stretch.
        """
        maps = self.maps(name)
        middle, high = np.quantile(maps, [0.5, 0.75])
        return ((maps - middle) * self.masks(name)).mean(axis=(1, 2)) / max(high - middle, _LEAST)

    def _held(self, name: str, window: float | None) -> np.ndarray:
        """The statistic before it is freed of complexity: of whole pictures (n,), or around every place (n, h, w)."""
        if name == "caption":
            return self._held("own", window) - self._held("none", window)
        if name == "base":
            # a model without captions is compared without any
            own = "own" if "own" in self.measured.errors else "none"
            return self._held(own, window) - self._log("base", window)
        return self._log(name, window)

    def _log(self, condition: str, window: float | None) -> np.ndarray:
        """Minus the mean of log errors over the levels."""
        errors = self.measured.errors[condition]
        errors = errors.mean(axis=(2, 3)) if window is None else pooled(errors, window)
        return -np.log(errors + _LEAST).mean(axis=1)


@dataclass(frozen=True)
class Judged:
    """The first answer about a picture.

    Attributes:
        p_value: how often a picture like the controls would have as low errors; NaN where nothing is said.
        p_values: condition → the p-value under that condition alone.
        statistics: name → the picture's statistic.
        conditions: under which it is judged.
        part: `whole` or `window`: whether the picture stands out most as a whole or in a window.
        map: how much better every place is restored than places as detailed, by the statistic by which it stands out
            most, (h, w). The error under the caption has no map: what the caption adds is shown instead, or the error
            without it.
        part_p: how often controls stand out as much within their masks.
        masks: where the picture, and every control, stands out, each by its own strongest statistic, (n, h, w) bool.
        gap: by how much the own caption lowers the log error compared with another one; NaN without captions.
        gap_p: how often controls have as high a gap.
        rows: numbers of the controls that it is compared with.
        notes: what to know about it, in sentences.
    """

    p_value: float = math.nan
    p_values: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[str, float] = field(default_factory=dict)
    conditions: Sequence[str] = ()
    part: str = "whole"
    map: np.ndarray = field(default_factory=lambda: np.zeros((1, 1)), repr=False)
    part_p: float = math.nan
    masks: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 1), dtype=bool), repr=False)
    gap: float = math.nan
    gap_p: float = math.nan
    rows: Sequence[int] = ()
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls, compared: Compared, conditions: Sequence[str], rate: float, rows: Sequence[int], notes: Sequence[str]
    ) -> "Judged":
        """The first answer from a comparison at a rate, which need not be kept."""
        names = [name.split("/") for name in compared.strongest(conditions)]
        shown = [name if name != "own" else compared.shown_by(row) for row, (name, _) in enumerate(names)]
        masks = {name: compared.masks(name) for name in set(shown)}
        parts = {name: compared.parts(name) for name in set(shown)}
        notes = list(notes)
        gap, gap_p = math.nan, math.nan
        if "own" in conditions and "other" in compared.measured.errors:
            gap, gap_p = float(compared.gap()[0]), first_p_value(compared.gap_scores())
            if first_p_value(-compared.gap_scores()) <= rate:
                notes.append("its caption helps the model less than captions help the controls; is it the right one?")
        p_value = compared.p_value(conditions)
        if compared.unlike:
            p_value = math.nan
            notes.append(f"it is {compared.unlike} than all controls, so it cannot be compared with them; give others")
        return cls(
            p_value=p_value,
            p_values={name: compared.p_value([name]) for name in compared.conditions},
            statistics={name: float(values[0]) for name, values in compared.statistics.items()},
            conditions=conditions,
            part=names[0][1],
            # a copy, because a view would hold the maps of all controls
            map=compared.maps(shown[0])[0].astype(np.float32),
            part_p=math.nan if compared.unlike else first_p_value([parts[name][row] for row, name in enumerate(shown)]),
            masks=np.stack([masks[name][row] for row, name in enumerate(shown)]),
            gap=gap,
            gap_p=gap_p,
            rows=rows,
            notes=notes,
        )

    @property
    def mask(self) -> np.ndarray:
        """Where the picture stands out, (h, w) bool."""
        return self.masks[0]

    def held_by(self, rate: float) -> str:
        """`caption`, `model`, `training` or several of them: under what the picture stands out at a rate."""
        words = {"own": "caption", "none": "model", "base": "training"}
        return ", ".join(words[name] for name in self.conditions if self.p_values[name] <= rate)


def freed(statistic: np.ndarray, covariate: np.ndarray) -> np.ndarray:
    """What a quadratic function of a covariate (n,) leaves of a statistic (n,), (n,)."""
    spread = covariate.std()
    x = (covariate - covariate.mean()) / spread if spread > 0 else np.zeros_like(covariate)
    design = np.stack([np.ones_like(x), x, x**2], axis=1)
    return statistic - design @ np.linalg.lstsq(design, statistic, rcond=None)[0]


def standardized(statistic: np.ndarray) -> np.ndarray:
    """A statistic (n,) less its median, divided by the distance from there to the ninth decile; 0 where that is 0.

    So a statistic with a long upper tail does not drown others.
    """
    middle, high = np.quantile(statistic, [0.5, 0.9])
    return (statistic - middle) / (high - middle) if high > middle else np.zeros_like(statistic)


def pooled(values: np.ndarray, window: float) -> np.ndarray:
    """The means of values (…, h, w) over the square around every place, (…, h, w).

    Args:
        values: at every place.
        window: side of the square as a share of the shorter side; it is rounded to an odd number of places.
    """
    side = max(1, round(window * min(values.shape[-2:]))) | 1
    return uniform_filter(values, size=side, axes=(-2, -1), mode="nearest")


def restored_scores(near: np.ndarray) -> np.ndarray:
    """How near pictures come back from noise, the largest of several statistics, (n,).

    Args:
        near: distances, and similarities of edges, of what came back from several noise levels, of one or more parts
            of the picture, (n, levels, parts, 2).
    """
    distances = -np.log(near[..., 0] + _LEAST).mean(axis=1)
    similarities = near[..., 1].mean(axis=1)
    statistics = np.concatenate([distances, similarities], axis=1).T
    return np.max([standardized(statistic) for statistic in statistics], axis=0)


def first_p_value(scores: np.ndarray | Sequence[float]) -> float:
    """The conformal p-value of the first of n scores against the others."""
    values = torch.from_numpy(np.asarray(scores, dtype=np.float64))
    return float(conformal_p_values(values[:1], values[1:])[0])


def check_controls(count: int, rate: float) -> None:
    """Refuse controls that are too few for a rate.

    Raises:
        UsageError: with the number that is needed.
    """
    if count < (needed := needed_null(rate)):
        raise UsageError(
            f"got {count} controls, and a rate of {rate:g} needs at least {needed}; give more, or an alpha of "
            f"{rounded_up(1 / (count + 1))}"
        )
