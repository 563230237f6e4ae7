"""Two runs side by side: which findings are new in the second, and which are gone."""

from dataclasses import dataclass, field

from cryptomnesia.auditing.evidence import Gate, Level, gate
from cryptomnesia.auditing.outcome import Outcome
from cryptomnesia.errors import UsageError

Change = tuple[str, Level, Level]
"""A prompt with its level in the first run and in the second."""


@dataclass(frozen=True)
class Comparison:
    """What changed from one run to another.

    Attributes:
        new: prompts of both runs that reach the level only in the second.
        gone: prompts of both runs that reach the level only in the first, and could be judged in the second.
        unsure: prompts of both runs that reach the level only in the first, and could not be judged in full in the
            second.
        only_before: prompts of the first run that the second lacks.
        only_after: prompts of the second run that the first lacks.
        before: the gate over the common prompts in the first run.
        after: the gate over the common prompts in the second run.
        new_behind: prompts of both runs that reach the level behind the guard only in the second; empty unless both
            runs have a guard.
        before_behind: the gate over what the guard of the first run returned, None if it has none.
        after_behind: the same of the second run.
    """

    new: list[Change]
    gone: list[Change]
    unsure: list[Change]
    only_before: list[str]
    only_after: list[str]
    before: Gate
    after: Gate
    new_behind: list[Change] = field(default_factory=list)
    before_behind: Gate | None = None
    after_behind: Gate | None = None


def compare(before: Outcome, after: Outcome, *, least: Level, limit: float = 0.0) -> Comparison:
    """Compare two finished runs.

    Args:
        before: the first run.
        after: the second run.
        least: the level that counts as a finding.
        limit: share of prompts that may reach it.

    Raises:
        UsageError: for runs without a common prompt.
    """
    judged_before, judged_after = ({judged.prompt: judged for judged in run.prompts} for run in (before, after))
    common = [prompt for prompt in judged_before if prompt in judged_after]
    if not common:
        raise UsageError("the two runs have no prompt in common; compare runs of the same prompts")
    pairs = [(judged_before[prompt], judged_after[prompt]) for prompt in common]
    changes: list[Change] = [(first.prompt, first.level, second.level) for first, second in pairs]
    lost = [change for change in changes if change[2] < least <= change[1]]
    unsure = {second.prompt for _, second in pairs if second.unsure}
    behind: list[Change] = [
        (first.prompt, first.behind, second.behind)
        for first, second in pairs
        if first.behind is not None and second.behind is not None
    ]

    def judged_by(side: int) -> tuple[Gate, Gate | None]:
        """The gate over the common prompts of a run, and that behind its guard."""
        found = [pair[side] for pair in pairs]
        levels = [judged.behind for judged in found if judged.behind is not None]
        model = gate([judged.level for judged in found], least, limit, unsure=[judged.unsure for judged in found])
        if len(levels) < len(found):
            return model, None
        return model, gate(levels, least, limit, unsure=[judged.unsure_behind for judged in found])

    (first, first_behind), (second, second_behind) = judged_by(0), judged_by(1)
    return Comparison(
        new=[change for change in changes if change[1] < least <= change[2]],
        gone=[change for change in lost if change[0] not in unsure],
        unsure=[change for change in lost if change[0] in unsure],
        only_before=[prompt for prompt in judged_before if prompt not in judged_after],
        only_after=[prompt for prompt in judged_after if prompt not in judged_before],
        before=first,
        after=second,
        new_behind=[change for change in behind if change[1] < least <= change[2]],
        before_behind=first_behind,
        after_behind=second_behind,
    )
