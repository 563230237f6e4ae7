"""Sentences for a report about a picture: what was measured and what it shows. They say what a model can do, no more.

The page of a picture shows them filled in; docs/how-to/answer-for-a-picture.md shows them with their brackets, which
stand for what is filled in. What only the reader knows, the date for instance, stays in brackets.
"""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cryptomnesia.finding.answers import Verdict

if TYPE_CHECKING:
    from cryptomnesia.finding.answers import Answer, Found

EXAMINED = (
    "On [date] we examined whether the model [model], weights [weights], holds the picture [picture], SHA-256 "
    "[digest], with cryptomnesia [version]."
)

COMPARED = (
    "The picture was compared with [number] control pictures, which were [how they were chosen], at an error rate of "
    "[rate]: a picture that the model was not trained on, and that is comparable with the controls, is reported with "
    "this probability at most."
)

ANSWERS: Mapping[Verdict, str] = {
    "reproducible": "Under the caption [caption] the model made [what] from nothing but noise in [copies] of [seeds] "
    "tries. Of the controls, [share] came as near under their captions. It restored the picture from noise better than "
    "comparable pictures (p = [p]).",
    "retained": "The model restored [what] from noise better than comparable pictures (p = [p]). From nothing but "
    "noise it made the picture in [copies] of [seeds] tries.",
    "not evidenced": "The model treated the picture like comparable pictures that it was not trained on (p = [p]). "
    "This does not show that the picture was not used in training.",
    "undecided": "The examination did not answer the question: [reason].",
}

LIMITS = (
    "These statements describe what the model is able to do. They are no statement about the law, and none about how "
    "the picture came to the model."
)


def sentences(found: "Found", answer: "Answer") -> list[str]:
    """The paragraphs of a report about a picture."""
    values = {
        "model": str(found.about["model"]),
        "weights": str(found.about["weights"])[:12],
        "picture": answer.name,
        "digest": answer.sha256,
        "version": str(found.about["versions"]["cryptomnesia"]),
        "number": str(found.controls),
        "rate": f"{found.alpha:.3g}",
        "p": f"{answer.p_value:.3g}",
        "what": "the picture",
        "reason": "; ".join(answer.notes),
    }
    if answer.part == "window":
        values["what"] = f"the part of the picture that the mask holds, {answer.share:.0%} of it,"
    made = answer.restorations[-1] if answer.restorations else None
    if made is not None and math.isinf(made.ratio):
        values |= {"copies": str(made.copies), "seeds": str(made.seeds), "share": f"{made.controls:.0%}"}
    paragraphs = [EXAMINED, COMPARED, ANSWERS[answer.verdict], LIMITS]
    if not found.controls:
        paragraphs.remove(COMPARED)
    if answer.verdict == "retained" and made is None:
        # pictures without captions are not made from nothing but noise
        paragraphs[2] = paragraphs[2].partition(" From nothing")[0]
    if not answer.caption:
        paragraphs[2] = (
            paragraphs[2].replace("Under the caption [caption] the", "The").replace(" under their captions", "")
        )
    return [filled(paragraph, values) for paragraph in paragraphs]


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with what is known in place of its brackets."""
    return re.sub(r"\[([^\]]+)\]", lambda place: values.get(place[1], place[0]), text)
