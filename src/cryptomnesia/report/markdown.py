"""The audit in Markdown: a section for the model's card, and which questions the evidence answers."""

from typing import Any

from cryptomnesia.auditing.outcome import Outcome
from cryptomnesia.report.meanings import notes
from cryptomnesia.report.safeguard import HEADINGS, named, sentences, share_of, table


def model_card(found: Outcome) -> str:
    """A section for a model card."""
    settings, gate, call = found.settings, found.gate, found.about["fingerprint"]
    index = found.about["index"]
    matched = "none, so that nothing could be confirmed" if index is None else f"{index[1]} by {index[0]}"
    if left_out := found.about["skipped_count"]:
        matched += f"; {left_out} more files could not be used"
    made_by = f"cryptomnesia {found.about['versions']['cryptomnesia']}"
    share, low, high = (f"{value:.1%}" for value in (gate.share.value, gate.share.low, gate.share.high))
    counted = f"{settings.fail_on} or worse" + ("" if found.safeguard is None else " behind the guard")
    remarks = "".join(f"{note[0].upper()}{note[1:]}.\n" for note in notes(found))
    return f"""## Memorization

Audited with {made_by}: {len(found.prompts)} prompts with {settings.images_per_prompt} images each
({call["steps"]} steps of {call["scheduler"]}, guidance {call["guidance"]:g}); {found.detector}, suspected at
p ≤ {found.fpr:g}. {_methods(found)} Training images compared with: {matched}.
{remarks}
{_table(("evidence", "prompts"), list(found.counts.items()))}

{_safeguard(found)}{share} of prompts (95% interval {low} to {high}) are {counted}; the limit is {gate.limit:.1%}:
{gate.outcome}.

The prompts decide what an audit can find. These figures hold for prompts like the ones that were used and for these
settings; they bound nothing else. Suspected and corroborated do not mean memorized: only a match with a training image
does. Weights {found.about["weights"][:12]}.
"""


def answers(found: Outcome) -> str:
    """Which questions of regulators the evidence answers and which it cannot, for those who must answer for a model."""
    compared = "yes" if found.about["index"] is not None else "no: no training images were compared"
    seeds = "in part" if found.settings.images_per_prompt > 1 else "no: one image per prompt"
    rows = [row for judged in found.prompts for row in judged.images]
    mapped = sum(row["map"] is not None for row in rows)
    regions = f"yes, of {mapped} images" if mapped else "no: nothing was flagged, or no maps were computed"
    head = ("question", "answered", "by")
    copyright_questions = [
        ("Was the model tested for reproducing training content?", "yes, by these prompts", "run.json"),
        ("How often does it, on these prompts?", compared, "confirmed prompts, with their interval"),
        ("Is there a measure that prevents it, and does it work?", *_remedy(found, rows)),
        ("Does it reproduce works that were not compared?", "no", "scores suspect; only a match confirms"),
        ("Is a reproduction an infringement?", "no", "that is a question of law, not of pixels"),
    ]
    privacy_questions = [
        ("Can prompts draw training images out of the model?", compared, "confirmed prompts"),
        ("Can someone who searches for them do so?", "no", "an audit replays prompts, an attacker chooses them"),
        ("Does the finding hold under other seeds?", seeds, "images per prompt"),
        ("Which region of a picture is memorized?", regions, "maps and masks"),
        ("Was the content licensed, or its subject's consent given?", "no", "nothing in pixels or weights says so"),
    ]
    return f"""# What this audit answers

Model {found.about["model"]}, weights {found.about["weights"][:12]}, {len(found.prompts)} prompts. This page is no legal
advice; it says on which questions the run holds evidence.

## Code of practice for general-purpose AI (EU), copyright chapter, measure 1.4: infringing outputs

{_table(head, copyright_questions)}

## NIST AI 600-1: data privacy, intellectual property

{_table(head, privacy_questions)}
"""


def _safeguard(found: Outcome) -> str:
    """What a guard changes, as a table and sentences; "" without a guard."""
    if found.safeguard is None:
        return ""
    summary = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences(found))
    return f"""### Without and with the safeguard

{_table(HEADINGS, [tuple(line) for line in table(found)])}

Intervals are 95%. {summary}

"""


def _remedy(found: Outcome, rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Whether there is a measure against reproductions that works, and by what that is answered."""
    tried = sum(row["action"] != "none" for row in rows)
    if found.safeguard is None:
        answer = f"in part, on {tried} images" if tried else "no: nothing was flagged, or the mitigation was not tried"
        return answer, "the mitigation tried on flagged images"
    shares, policy = found.safeguard.reproduced, found.safeguard.policy
    if shares is None:
        return f"in part, on {tried} images: no training images were compared", named(policy)
    without, behind = (share_of(found) for found in (shares.without, shares.behind))
    answer = f"yes: {without} of images reproduce a training image without it, {behind} with it"
    return answer, named(policy)


def _methods(found: Outcome) -> str:
    """The localizer and the mitigation of the run in a sentence."""
    localizer, mitigation = found.about["methods"]["localizer"], found.about["methods"]["mitigation"]
    maps = "No maps were computed" if localizer is None else f"Maps of flagged images by {localizer}"
    remedy = "no mitigation was tried" if mitigation is None else f"the mitigation {mitigation} was tried on them"
    if found.safeguard is not None:
        remedy = named(found.safeguard.policy) + ("" if mitigation is None else f" with {mitigation}") + " was tried"
    return f"{maps}; {remedy}."


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]] | list[tuple[str, int]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
