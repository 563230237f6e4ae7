"""Two runs side by side: which findings are new in the second, and which are gone."""

from dataclasses import dataclass

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
    """

    new: list[Change]
    gone: list[Change]
    unsure: list[Change]
    only_before: list[str]
    only_after: list[str]
    before: Gate
    after: Gate


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
    levels_before, levels_after = ({judged.prompt: judged.level for judged in run.prompts} for run in (before, after))
    unsure_before, unsure_after = (
        {judged.prompt for judged in run.prompts if judged.unsure} for run in (before, after)
    )
    common = [prompt for prompt in levels_before if prompt in levels_after]
    if not common:
        raise UsageError("the two runs have no prompt in common; compare runs of the same prompts")
    changes: list[Change] = [(prompt, levels_before[prompt], levels_after[prompt]) for prompt in common]
    lost = [change for change in changes if change[2] < least <= change[1]]
    return Comparison(
        new=[change for change in changes if change[1] < least <= change[2]],
        gone=[change for change in lost if change[0] not in unsure_after],
        unsure=[change for change in lost if change[0] in unsure_after],
        only_before=[prompt for prompt in levels_before if prompt not in levels_after],
        only_after=[prompt for prompt in levels_after if prompt not in levels_before],
        before=gate(
            [levels_before[prompt] for prompt in common],
            least,
            limit,
            unsure=[prompt in unsure_before for prompt in common],
        ),
        after=gate(
            [levels_after[prompt] for prompt in common],
            least,
            limit,
            unsure=[prompt in unsure_after for prompt in common],
        ),
    )
