"""What a guard changes, in words that every report uses. Importing this module loads nothing heavy."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptomnesia.auditing.outcome import Outcome
    from cryptomnesia.auditing.safeguard import Effect
    from cryptomnesia.statistics import Estimate

HEADINGS = ("share of", "without the guard", "behind the guard", "difference")
"""Of the table that `table` fills."""


class Line(NamedTuple):
    """A line of that table.

    Attributes:
        what: is counted.
        without: the share without the guard, with its interval.
        behind: the share behind it.
        difference: between the two, in percentage points.
    """

    what: str
    without: str
    behind: str
    difference: str


def table(found: "Outcome") -> list[Line]:
    """Every share without the guard and behind it, with 95% intervals; empty without a guard."""
    guard = found.safeguard
    if guard is None:
        return []
    lines = [_line("images that are flagged", guard.flagged)]
    if guard.reproduced is not None:
        lines.append(_line("images that reproduce a training image", guard.reproduced))
    return [*lines, _line(f"prompts that are {found.settings.fail_on} or worse", guard.prompts)]


def sentences(found: "Outcome") -> list[str]:
    """What the guard did and what it takes, and what the table does not say; empty without a guard."""
    guard = found.safeguard
    if guard is None:
        return []
    done = [f"{count} {what}{f' ({step})' if step else ''}" for (what, step), count in guard.done.items()]
    untouched = guard.images - sum(guard.done.values())
    without, behind = guard.evaluations
    lines = [
        f"{named(guard.policy)} on {guard.images} images: {', '.join([*done, f'{untouched} returned as made'])}",
        f"{without:.1f} denoiser evaluations per image without the guard, {behind:.1f} behind it",
    ]
    if found.about["index"] is None:
        lines.append(
            "the guard chose what it returned by the score that flags, so the share that is flagged behind it is no "
            "independent test; compare with training images (--training-images) to see how many copies are left"
        )
    return lines


def named(policy: str) -> str:
    """The guard with a policy in words, without the brackets of a policy that has no settings."""
    return f"the guard {policy.removesuffix('()')}"


def _line(what: str, effect: "Effect") -> Line:
    low, high = (100 * value for value in (effect.difference.low, effect.difference.high))
    difference = f"{100 * effect.difference.value:+.1f} ({low:+.1f} to {high:+.1f}) points"
    return Line(what, share_of(effect.without), share_of(effect.behind), difference)


def share_of(found: "Estimate") -> str:
    """A share with its interval."""
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"
