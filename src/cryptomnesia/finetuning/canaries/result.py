"""What canaries say of a training, and no more than what was measured."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptomnesia.finding.answers import plain
from cryptomnesia.finetuning.canaries.exposure import Dose


@dataclass(frozen=True)
class DoseResponse:
    """How much a model has learnt of canaries, by their repetitions.

    Attributes:
        about: what it depends on, as JSON values.
        doses: from the fewest repetitions on.
        reserve: number of pictures that were never shown, with which canaries are compared.
        alpha: the rate: if no canary was learnt, some repetitions stand out with this probability at most.
        notes: what to know about the measurement, in sentences.
    """

    about: Mapping[str, Any]
    doses: Sequence[Dose]
    reserve: int
    alpha: float
    notes: Sequence[str] = ()

    @property
    def limit(self) -> float:
        """The largest exposure that so large a reserve allows, in bits."""
        return math.log2(self.reserve + 1)

    @property
    def tolerated(self) -> int:
        """The most repetitions that were measured and do not stand out; 0 if there are none."""
        return max((dose.repetitions for dose in self._quiet), default=0)

    @property
    def _quiet(self) -> list[Dose]:
        """The doses that were measured and do not stand out: those below all that do."""
        return [dose for dose in self.doses if dose.canaries and not dose.stands_out]

    @property
    def exit_code(self) -> int:
        """1 if some repetitions stand out, else 3 if those of some repetitions could not be measured, else 0."""
        if any(dose.stands_out for dose in self.doses):
            return 1
        return 3 if any(math.isnan(dose.p_value) for dose in self.doses) else 0

    @property
    def conclusion(self) -> list[str]:
        """What follows, and what does not, in sentences."""
        out = [dose for dose in self.doses if dose.stands_out]
        found = []
        if out:
            found.append(
                f"Canaries of {_times(out[0].repetitions)}{' and more' if len(out) > 1 else ''} are restored better "
                f"than pictures that were never shown (error rate {self.alpha:g})."
            )
        found += [
            f"No canary of {_times(dose.repetitions)} could be measured." for dose in self.doses if not dose.canaries
        ]
        if not self._quiet:
            return found
        *others, last = self._quiet
        found.append(
            f"Up to {_times(last.repetitions)} canaries are not told from pictures that were never shown (error rate "
            f"{self.alpha:g})."
        )
        found.append(
            f"That does not show that nothing is learnt: {last.single} of {len(last.canaries)} canaries of "
            f"{_times(last.repetitions)} stand out by themselves, so up to {last.share.high:.0%} of pictures that are "
            "shown as often may."
        )
        lower = [dose for dose in others if dose.p_value <= self.alpha / len(self.doses)]
        if lower:
            found.append(
                f"Canaries of {_times(lower[-1].repetitions)} have p = {lower[-1].p_value:.2g}, although those of "
                f"{_times(last.repetitions)} do not stand out; more canaries would tell."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values; NaN is null."""
        return plain(
            {
                "about": self.about,
                "alpha": self.alpha,
                "reserve": self.reserve,
                "limit": self.limit,
                "tolerated": self.tolerated,
                "conclusion": self.conclusion,
                "notes": self.notes,
                "doses": [
                    {
                        "repetitions": dose.repetitions,
                        "canaries": len(dose.canaries),
                        "p_value": dose.p_value,
                        "stands_out": dose.stands_out,
                        "exposure": vars(dose.exposure),
                        "extrapolated": dose.extrapolated,
                        "single": dose.single,
                        "share": vars(dose.share),
                        "measured": [{**vars(one), "exposure": one.exposure} for one in dose.canaries],
                    }
                    for dose in self.doses
                ],
            }
        )

    def save(self, folder: Path) -> None:
        """Write `exposure.json`, and the curve as `exposure.svg`."""
        from cryptomnesia.files import write_whole
        from cryptomnesia.report.exposure import curve

        write_whole(folder / "exposure.json", json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        write_whole(folder / "exposure.svg", curve(self))


def _times(repetitions: int) -> str:
    return "1 repetition" if repetitions == 1 else f"{repetitions} repetitions"
