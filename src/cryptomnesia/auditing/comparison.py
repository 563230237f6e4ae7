"""Two runs side by side: which prompts are new among the findings, and which are gone."""

from dataclasses import dataclass

from cryptomnesia.auditing.evidence import Gate, Level, gate
from cryptomnesia.auditing.outcome import Outcome
from cryptomnesia.errors import UsageError


@dataclass(frozen=True)
class Comparison:
    """What changed from one run to another.

    Attributes:
        new: prompts of both runs that reach the level in the second alone, with their levels before and after.
        gone: likewise in the first alone, the second saying that there is less.
        unsure: likewise in the first alone, the second being unable to tell.
        only_before: prompts of the first run that the second lacks.
        only_after: prompts of the second that the first lacks.
        before: the gate over the common prompts in the first run.
        after: the same in the second.
    """

    new: list[tuple[str, Level, Level]]
    gone: list[tuple[str, Level, Level]]
    unsure: list[tuple[str, Level, Level]]
    only_before: list[str]
    only_after: list[str]
    before: Gate
    after: Gate


def compare(before: Outcome, after: Outcome, *, least: Level, limit: float = 0.0) -> Comparison:
    """Compare two finished runs.

    Args:
        before: the first.
        after: the second.
        least: the level that counts as a finding.
        limit: share of prompts that may reach it.

    Raises:
        UsageError: for runs without a common prompt.
    """
    first, second = ({each.prompt: each.level for each in run.prompts} for run in (before, after))
    blind, blind_now = ({each.prompt for each in run.prompts if each.unsure} for run in (before, after))
    common = [prompt for prompt in first if prompt in second]
    if not common:
        raise UsageError("the two runs have no prompt in common; compare runs of the same prompts")
    pairs = [(prompt, first[prompt], second[prompt]) for prompt in common]
    return Comparison(
        new=[each for each in pairs if each[1] < least <= each[2]],
        gone=[each for each in pairs if each[2] < least <= each[1] and each[0] not in blind_now],
        unsure=[each for each in pairs if each[2] < least <= each[1] and each[0] in blind_now],
        only_before=[prompt for prompt in first if prompt not in second],
        only_after=[prompt for prompt in second if prompt not in first],
        before=gate([first[prompt] for prompt in common], least, limit, unsure=[prompt in blind for prompt in common]),
        after=gate(
            [second[prompt] for prompt in common], least, limit, unsure=[prompt in blind_now for prompt in common]
        ),
    )
