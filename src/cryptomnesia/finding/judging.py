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
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        detail = np.log(self.measured.detail.mean(axis=(1, 2)) + _LEAST)
        found = {}
        for name in self._known:
            found[f"{name}/whole"] = standardized(freed(self._held(name, None), detail))
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

    def _under(self, conditions: Sequence[str]) -> dict[str, np.ndarray]:
        """The statistics under some conditions; what the caption adds belongs to its own condition."""
        wanted = {*conditions, *(["caption"] if "own" in conditions else [])}
        return {name: values for name, values in self.statistics.items() if name.partition("/")[0] in wanted}

    def gap(self) -> np.ndarray:
        """By how much the own caption lowers the log error compared with another one, (n,)."""
        return self._held("own", None) - self._held("other", None)

    def maps(self, name: str, window: float = FINE) -> np.ndarray:
        """How much better every place is restored than places as detailed, in nats, (n, h, w)."""
        detail = np.log(pooled(self.measured.detail, WINDOW) + _LEAST)
        held = self._held(name, window)
        return freed(held.ravel(), detail.ravel()).reshape(held.shape)

    def masks(self, name: str) -> np.ndarray:
        """Where every picture is restored better than `PIXEL_RATE` of the places of all pictures, (n, h, w) bool."""
        maps = self.maps(name)
        return maps > np.quantile(maps, 1 - PIXEL_RATE)

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
        compared: the picture and its controls; None without controls.
        conditions: under which it is compared.
        rate: of the comparison.
        rows: numbers of the controls that it is compared with.
        notes: what to know about it, in sentences.
    """

    compared: Compared | None
    conditions: Sequence[str]
    rate: float
    rows: np.ndarray | Sequence[int] = ()
    notes: Sequence[str] = ()

    @cached_property
    def p_value(self) -> float:
        """How often a picture like the controls would have as low errors; NaN without controls."""
        return math.nan if self.compared is None else self.compared.p_value(self.conditions)

    @cached_property
    def p_values(self) -> dict[str, float]:
        """Condition → the p-value under that condition alone."""
        compared = self.compared
        if compared is None:
            return {}
        return {name: compared.p_value([name]) for name in compared.conditions}

    @property
    def statistics(self) -> dict[str, float]:
        """Name → the picture's statistic."""
        found = {} if self.compared is None else self.compared.statistics
        return {name: float(values[0]) for name, values in found.items()}

    @cached_property
    def _strongest(self) -> list[tuple[str, str]]:
        """By which statistic each picture stands out most, and whether as a whole or in a window."""
        if self.compared is None:
            return [("none", "whole")]
        found = [name.split("/") for name in self.compared.strongest(self.conditions)]
        # where something is known is seen best in what the caption adds
        return [("caption" if name == "own" else name, part) for name, part in found]

    @property
    def part(self) -> str:
        """`whole` or `window`: whether the picture stands out most as a whole or in a window."""
        return self._strongest[0][1]

    @cached_property
    def map(self) -> np.ndarray:
        """How much better every place is restored than places as detailed, (h, w)."""
        return np.zeros((1, 1)) if self.compared is None else self.compared.maps(self._strongest[0][0])[0]

    @cached_property
    def masks(self) -> np.ndarray:
        """Where the picture, and every control, stands out by its own strongest statistic, (n, h, w) bool."""
        if self.compared is None:
            return np.zeros((1, 1, 1), dtype=bool)
        names = [name for name, _ in self._strongest]
        every = {name: self.compared.masks(name) for name in set(names)}
        return np.stack([every[name][row] for row, name in enumerate(names)])

    @property
    def mask(self) -> np.ndarray:
        """Where that stands out, (h, w) bool."""
        return self.masks[0]

    @cached_property
    def _gaps(self) -> np.ndarray | None:
        compared = self.compared
        both = compared is not None and {"own", "other"} <= compared.measured.errors.keys()
        return compared.gap() if compared is not None and both and "own" in self.conditions else None

    @property
    def gap(self) -> float:
        """By how much the own caption lowers the log error compared with another one; NaN without captions."""
        return math.nan if self._gaps is None else float(self._gaps[0])

    @property
    def gap_p(self) -> float:
        """How often controls have as high a gap."""
        return math.nan if self._gaps is None else first_p_value(self._gaps)

    @property
    def doubts(self) -> list[str]:
        """What speaks against the caption, in sentences."""
        if self._gaps is None or first_p_value(-self._gaps) > self.rate:
            return []
        return ["another caption fits the picture better than its own compared with the controls; is it the right one?"]

    def held_by(self, rate: float) -> str:
        """`caption`, `model`, `training` or several of them: under what the picture stands out at a rate, or most."""
        words = {"own": "caption", "caption": "caption", "none": "model", "base": "training"}
        under = [words[name] for name in self.conditions if self.p_values[name] <= rate] or [
            words[self._strongest[0][0]]
        ]
        return ", ".join(under)


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


def first_p_value(scores: np.ndarray) -> float:
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
