"""What a guard changes in an audit: shares without it and with it, from what the run stored. Needs no model.

Everything is counted over all images, because an image that the detector misses is returned as it is. An image that is
withheld counts as not returned. One that was made again counts by what was returned: by its own score, and by its own
match with a training image. A guard returns it because its score is ordinary, so only the match is an independent test.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from cryptomnesia.auditing.evidence import Gate, Level
from cryptomnesia.auditing.rows import RETURNED
from cryptomnesia.statistics import Estimate, covering_exact, paired_difference, rate

Row = Mapping[str, Any]
"""What a run stored of one image."""


class Seen(NamedTuple):
    """What an image shows without the guard and with it; where that is not known the bounds are 0 and 1.

    Attributes:
        without: lower and upper bound, without the guard.
        behind: lower and upper bound, behind the guard.
        same: whether the guard returns the image as it is, so that both are the same although not known.
    """

    without: tuple[int, int]
    behind: tuple[int, int]
    same: bool


@dataclass(frozen=True)
class Effect:
    """A share without a guard and with it.

    Attributes:
        without: the share without the guard, with its 95% interval. The upper bound counts what could not be judged.
        behind: the share behind the guard.
        difference: the second share minus the first, of the same images.
    """

    without: Estimate
    behind: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Safeguard:
    """What a guard changes.

    Attributes:
        policy: the policy with its settings, in words.
        images: the number of images.
        flagged: the share of images that are flagged by the run's own detector, at the run's own rate.
        reproduced: the share of images that reproduce a training image; None where none were compared.
        prompts: the share of prompts that reach the level of the gate.
        done: (what was done, by which step of the policy) → number of images that were not returned as they were.
        evaluations: of the denoiser per image, without the guard and with it.
    """

    policy: str
    images: int
    flagged: Effect
    reproduced: Effect | None
    prompts: Effect
    done: dict[tuple[str, str], int]
    evaluations: tuple[float, float]

    @classmethod
    def of(
        cls,
        policy: str,
        rows: Sequence[Row],
        *,
        compared: bool,
        without: Gate,
        behind: Gate,
        levels: Sequence[Seen],
    ) -> "Safeguard":
        """What a guard changed in a run.

        Args:
            policy: of the guard, in words.
            rows: of the stage `images`, at least one.
            compared: whether the images were compared with training images.
            without: the gate over what the model makes.
            behind: the gate over what the guard returns.
            levels: for every prompt whether it reaches the level of the gate.
        """
        by_prompt: dict[str, list[Row]] = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row)
        groups = list(by_prompt.values())
        done = Counter((_what(row), row["step"]) for row in rows if not is_same(row))
        return cls(
            policy=policy,
            images=len(rows),
            flagged=_effect([[_flagged(row) for row in group] for group in groups]),
            reproduced=_effect([[_reproduced(row) for row in group] for group in groups]) if compared else None,
            prompts=Effect(without.share, behind.share, _difference([[one] for one in levels])),
            done=dict(sorted(done.items())),
            evaluations=(
                float(np.mean([len(row["timesteps"]) for row in rows])),
                float(np.mean([row["guard_evaluations"] for row in rows])),
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "policy": self.policy,
            "images": self.images,
            "flagged": asdict(self.flagged),
            "reproduced": None if self.reproduced is None else asdict(self.reproduced),
            "prompts": asdict(self.prompts),
            "done": [{"action": what, "step": step, "images": count} for (what, step), count in self.done.items()],
            "evaluations": dict(zip(("without", "behind"), self.evaluations, strict=True)),
        }


def is_withheld(row: Row) -> bool:
    """Whether a guard returned nothing in place of an image."""
    return row["instead"] is None and row["action"] == "withheld"


def is_same(row: Row) -> bool:
    """Whether a guard returned an image as it was."""
    return row["instead"] is None and row["action"] != "withheld"


def level_behind(row: Row, fpr: float) -> Level:
    """The level of evidence of what a guard returned, `none` for an image that is withheld.

    A second signal is that of the first image: nobody mapped the other one, and while it is still flagged nothing says
    that the signal is gone.

    Args:
        row: what both stages stored of an image.
        fpr: at which the guard flagged images.
    """
    if is_withheld(row):
        return Level.none
    if is_same(row):
        return Level[row["level"]]
    return Level.of(
        row["returned_p"],
        fpr,
        corroborated=row["region"] or row["repeated"],
        confirmed=row["returned_matched_whole"] or row["returned_matched_region"],
    )


def unsure_behind(row: Row, fpr: float) -> bool:
    """Whether what a guard returned could not be judged in full."""
    return not is_withheld(row) and (level_behind(row, fpr) == Level.unknown or row["map_missing"] is not None)


def reaches(least: Level, without: tuple[Level, bool], behind: tuple[Level, bool], *, same: bool) -> Seen:
    """Whether a prompt reaches a level without the guard and behind it.

    Args:
        least: the level.
        without: the prompt's level, and whether an image of it could not be judged in full.
        behind: the same of what the guard returned.
        same: whether all its images were returned as they were.
    """
    bounds = [(int(level >= least), int(level >= least or unsure)) for level, unsure in (without, behind)]
    return Seen(bounds[0], bounds[1], same)


def _what(row: Row) -> str:
    """What was done about an image that was not returned as it was."""
    # a correction may change a picture without a word
    return "changed" if row["action"] == "none" else row["action"]


def _flagged(row: Row) -> Seen:
    """Whether an image is flagged."""

    def bounds(p_value: float) -> tuple[int, int]:
        flagged = int(p_value <= row["fpr"])
        return (0, 1) if math.isnan(p_value) else (flagged, flagged)

    behind = (0, 0) if is_withheld(row) else bounds(row["returned_p"])
    return Seen(bounds(row["p_value"]), behind, is_same(row))


def _reproduced(row: Row) -> Seen:
    """Whether an image reproduces a training image; without its map nobody can tell for a part of it."""

    def bounds(place: str) -> tuple[int, int]:
        matched = row[f"{place}matched_whole"] or row[f"{place}matched_region"]
        return int(matched), int(matched or row["map_missing"] is not None)

    return Seen(bounds(""), (0, 0) if is_withheld(row) else bounds(RETURNED), is_same(row))


def _effect(groups: Sequence[Sequence[Seen]]) -> Effect:
    """The shares of images; a group is what is seen of the images of one prompt."""
    return Effect(
        _share([[one.without for one in group] for group in groups]),
        _share([[one.behind for one in group] for group in groups]),
        _difference(groups),
    )


def _share(groups: Sequence[Sequence[tuple[int, int]]]) -> Estimate:
    """A share with its interval, of images of which the bounds are known."""
    low, high = (_rate([np.array([bounds[end] for bounds in group], float) for group in groups]) for end in (0, 1))
    return Estimate(low.value, low.low, high.high)


def _rate(groups: list[np.ndarray]) -> Estimate:
    """A share of hits with its interval, which is exact if no two images are of one prompt, as that of the gate is."""
    if all(len(group) == 1 for group in groups):
        value = float(np.concatenate(groups).mean())
        return covering_exact(Estimate(value, value, value), len(groups))
    return rate(groups)


def _difference(groups: Sequence[Sequence[Seen]]) -> Estimate:
    """The difference of the shares, between what follows if what is not known is as good and as bad as can be."""

    def between(first: int, second: int) -> Estimate:
        before = [np.array([one.without[0 if one.same else first] for one in group], float) for group in groups]
        after = [np.array([one.behind[0 if one.same else second] for one in group], float) for group in groups]
        return paired_difference(before, after)

    return Estimate(between(0, 0).value, between(1, 0).low, between(0, 1).high)
