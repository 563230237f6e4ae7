"""Make the pictures of a bench once, make them again under every mitigation, and judge what comes back.

Every picture of a memorized caption is made again, whether or not a detector flags it, so that mitigations are compared
on the same pictures. Of other captions those pictures are made again that the detector flags, as a guard would do. What
a guard would return follows from the verdicts, which are kept as well: the picture itself if it is not flagged, else
the one of the mitigation if that is not flagged, else none. A mitigation that corrects the user's own run (`own_run`)
always gives its picture, and one that blinds the detector (`blind`) is refused by a guard.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cryptomnesia.bench.clip_score import ClipScore
from cryptomnesia.bench.mitigation_figures import UNTOUCHED, figures_of
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.remaking import PictureBench, call_of
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.mitigations import Mitigation
from cryptomnesia.parts import Stage
from cryptomnesia.tracing.generation import kept_prompts

PACKET = "mitigations.json.xz"
"""File with everything, when the bench is done."""


@dataclass(kw_only=True)
class MitigationBench(PictureBench):
    """Mitigations, under which the trials of memorized captions are made again.

    Attributes:
        clip: compares every picture with the caption of its trial, None for no comparison. A bench that goes on may be
            given another one.
    """

    clip: ClipScore | None = None

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: saying what.
        """
        super().check()
        kept_prompts(self.setup, [trial.prompt for trial in self.trials], "truncate")

    def request(self, row: int) -> tuple[Trial, dict[str, Any]]:
        """A trial, and the arguments of its call."""
        return self.trials[row], call_of(self.setup, self.trials[row])

    @property
    def _untouched(self) -> Stage:
        """The stage that makes the trials as they are."""
        return self.under(None, range(len(self.trials)))

    @cached_property
    def _plain(self) -> list[dict[str, Any]]:
        """The pictures of the trials as they are, once they are made."""
        return self.pictures(self._untouched)

    def stages(self) -> Iterator[list[Stage]]:
        """Yield the calibration, the pictures as they are, and those under all mitigations."""
        yield from self.calibrating()
        yield [self._untouched]
        yield [stage for mitigation in self.mitigations for stage in self._remaking(mitigation)]

    def _remaking(self, mitigation: Mitigation) -> list[Stage]:
        """The stages that make pictures under a mitigation."""
        positive = [row for row, trial in enumerate(self.trials) if trial.group == MEMORIZED]
        others = [row for row, trial in enumerate(self.trials) if trial.group != MEMORIZED]
        if self.corrects(mitigation):
            return [self.under(mitigation, [*positive, *others])]
        flagged = [row for row in others if self._plain[row]["flagged"]]
        # of few pictures it is known what each of them takes
        return [self.under(mitigation, positive), self.under(mitigation, flagged, "others/", 1)]

    def result(self) -> Packet:
        """What is seen in all pictures, and the figures.

        Raises:
            UsageError: for a damaged file of a part.
        """
        rows: list[dict[str, Any]] = [{**asdict(trial), "pictures": {}} for trial in self.trials]
        frechet: dict[str, dict[str, float]] = {}
        everything = {UNTOUCHED: dict(enumerate(self._plain))}
        for mitigation in self.mitigations:
            how = {"own_run": self.corrects(mitigation), "blind": mitigation.blinds(self.detector)}
            everything[mitigation.name] = {
                row: {**one, **how}
                for stage in self._remaking(mitigation)
                for row, one in zip(stage.rows, self.pictures(stage), strict=True)
            }
        for name, made in everything.items():
            # where no picture was made nothing is to be seen
            found = {row: {**one, "picture": _picture(one, self._plain[row])} for row, one in made.items()}
            pictures = np.stack([one["picture"] for one in found.values()])
            seen = self.look([self.trials[row] for row in found], pictures)
            for (row, one), sight in zip(found.items(), seen, strict=True):
                trial, untouched = self.trials[row], self._plain[row]["picture"]
                before, after = (picture.astype(np.float64) / 255 for picture in (untouched, one["picture"]))
                change = np.sqrt(((after - before) ** 2).mean(axis=-1))
                inside = self.look.mask(trial, untouched) if trial.group == MEMORIZED else None
                rows[row]["pictures"][name] = {
                    "own_run": False,
                    "blind": False,
                    **{key: value for key, value in one.items() if key != "picture"},
                    **sight,
                    "change": float(change.mean()) if one["made"] else None,
                    "change_inside": _mean(change, inside) if one["made"] else None,
                    "change_outside": _mean(change, None if inside is None else ~inside) if one["made"] else None,
                }
            for group in dict.fromkeys(self.trials[row].group for row in found):
                shown = [
                    one["picture"] for row, one in found.items() if self.trials[row].group == group and one["made"]
                ]
                frechet.setdefault(name, {})[group] = self.look.frechet(np.stack(shown)) if shown else float("nan")
            _spread(rows, found, name)
            if self.clip is not None:
                _compare(self.clip, rows, found, name)
        about = {**self.made_with, "bench": "mitigate", "frechet": frechet}
        if self.clip is not None:
            about["clip"] = self.clip.weights
        packet = Packet(about, self.methods, rows, figures_of(rows, [UNTOUCHED, *self.methods]))
        packet.save(self.folder / PACKET)
        return packet


def _mean(values: np.ndarray, mask: np.ndarray | None) -> float | None:
    """The mean of values (H, W) inside a mask, None if there is none or it is empty."""
    return None if mask is None or not mask.any() else float(values[mask].mean())


def _picture(one: dict[str, Any], plain: dict[str, Any]) -> np.ndarray:
    """The picture that was made, or a black one of the same size."""
    return one["picture"] if one["made"] else np.zeros_like(plain["picture"])


def _spread(rows: list[dict[str, Any]], found: Mapping[int, dict[str, Any]], name: str) -> None:
    """Add to every row how far its picture is from the others of its cluster, in the mean."""
    clusters: dict[str, list[int]] = {}
    for row, one in found.items():
        if one["made"]:
            clusters.setdefault(rows[row]["cluster"], []).append(row)
    for members in clusters.values():
        pictures = np.stack([found[row]["picture"] for row in members]).astype(np.float64) / 255
        for row, picture in zip(members, pictures, strict=True):
            distances = np.sqrt(((pictures - picture) ** 2).mean(axis=(1, 2, 3)))
            rows[row]["pictures"][name]["apart"] = (
                float(distances.sum() / (len(members) - 1)) if len(members) > 1 else None
            )


def _compare(clip: ClipScore, rows: list[dict[str, Any]], found: Mapping[int, dict[str, Any]], name: str) -> None:
    """Add to every row how well its picture fits the user's own caption, None if no picture was made."""
    scores = clip([rows[row]["prompt"] for row in found], np.stack([one["picture"] for one in found.values()]))
    for (row, one), score in zip(found.items(), scores, strict=True):
        rows[row]["pictures"][name]["clip"] = score if one["made"] else None
