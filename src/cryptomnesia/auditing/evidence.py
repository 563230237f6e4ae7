"""How much an audit knows: levels of evidence, and a gate that is judged on an interval.

*suspected*: the p-value of the score is at most the false-positive rate that was chosen.
*corroborated*: a second signal, from another part of the generation or from another seed, agrees with the score.
*confirmed*: the picture, or its memorized region, matches a training image. Only this may be called memorized.
*unknown*: no score could be given, which is not the same as *none*, a score like those of ordinary images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from scipy.stats import binomtest

from cryptomnesia.errors import UsageError
from cryptomnesia.statistics import Estimate


class Level(IntEnum):
    """How strong the evidence of memorization is for an image or a prompt, weakest first."""

    none = 0
    unknown = 1
    suspected = 2
    corroborated = 3
    confirmed = 4

    @classmethod
    def of(cls, p_value: float, fpr: float, *, corroborated: bool = False, confirmed: bool = False) -> "Level":
        """The level of one image.

        Args:
            p_value: of its score, NaN if there is none.
            fpr: the false-positive rate at which an image is suspected.
            corroborated: whether a second signal agrees; without a suspicion it is no evidence.
            confirmed: whether it matches a training image, which needs no score.
        """
        if confirmed:
            return cls.confirmed
        if math.isnan(p_value):
            return cls.unknown
        if p_value > fpr:
            return cls.none
        return cls.corroborated if corroborated else cls.suspected


@dataclass(frozen=True)
class Gate:
    """Whether the share of prompts that reach a level is within its limit.

    Attributes:
        outcome: `failed` if the interval of the share lies above the limit, `passed` if it lies below, otherwise
            `undecided`.
        share: the share of prompts that reach the level, with its 95% interval (Clopper–Pearson). The upper bound
            counts prompts that are unknown as reaching it, the lower bound as not reaching it.
        hits: the number of prompts that reach the level.
        unknown: the number of prompts that do not reach it and have an image that could not be judged in full.
        prompts: the number of prompts.
        limit: the share that is allowed.
        needed: for an undecided gate, the number of prompts that would decide it if the share stayed the same; None
            where no number would.
    """

    outcome: Literal["passed", "failed", "undecided"]
    share: Estimate
    hits: int
    unknown: int
    prompts: int
    limit: float
    needed: int | None

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 undecided."""
        return {"passed": 0, "failed": 1, "undecided": 3}[self.outcome]


def gate(levels: Sequence[Level], least: Level, limit: float, *, unsure: Sequence[bool] = ()) -> Gate:
    """Judge the share of prompts that reach a level.

    Args:
        levels: for every prompt the highest level among its images.
        least: the level that counts, `suspected` or above.
        limit: the share of prompts that is allowed, in [0, 1).
        unsure: for every prompt whether an image of it could not be judged in full; a prompt whose level is unknown
            counts as unsure in any case.

    Raises:
        UsageError: without prompts, for a level that is no evidence, or for a limit that is no share.

    Example:
        >>> gate([Level.none] * 400, Level.suspected, 0.01).outcome
        'passed'
    """
    if not levels:
        raise UsageError("got no prompts to judge; give at least one")
    if least < Level.suspected:
        raise UsageError(f"got the level {least.name}, which is no evidence; give suspected, corroborated or confirmed")
    if not 0 <= limit < 1:
        raise UsageError(f"got the limit {limit:g}; give a share of prompts from 0 to below 1")
    hits = sum(level >= least for level in levels)
    unknown = sum(
        level < least and (level == Level.unknown or has_unknown)
        for level, has_unknown in zip(levels, unsure or [False] * len(levels), strict=True)
    )
    low = _interval(hits, len(levels))[0]
    high = _interval(hits + unknown, len(levels))[1]
    outcome = "failed" if low > limit else "passed" if high < limit else "undecided"
    needed = _needed(hits, len(levels), limit) if outcome == "undecided" and not unknown else None
    share = Estimate(hits / len(levels), low, high)
    return Gate(outcome, share, hits, unknown, len(levels), limit, needed)


def _interval(hits: int, trials: int) -> tuple[float, float]:
    found = binomtest(hits, trials).proportion_ci(method="exact")
    return float(found.low), float(found.high)


def _needed(hits: int, trials: int, limit: float) -> int | None:
    """A number of prompts above `trials` that decides the gate at the same share of hits; one prompt fewer does not.

    It need not be the smallest such number, because the number of hits is rounded.
    """
    share = hits / trials
    if share == limit:
        return None

    def decided(count: int) -> bool:
        low, high = _interval(round(share * count), count)
        return low > limit or high < limit

    high = 2 * trials
    while not decided(high):
        high *= 2
        if high > 10**9:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
