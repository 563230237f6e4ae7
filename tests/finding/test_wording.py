"""Sentences for a report: the page of the documentation has those of the pages of pictures, and all are filled in."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from cryptomnesia import Answer, Found
from cryptomnesia.finding.answers import MEANINGS, Restoration
from cryptomnesia.finding.wording import ANSWERS, COMPARED, EXAMINED, LIMITS, sentences

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "answer-for-a-picture.md"
ONLY_THE_READER_KNOWS = {"date", "how they were chosen", "caption"}


def paragraphs(verdict, *, caption="a caption", controls=39, **more):
    given = {"p_value": 0.05, "p_values": {}, "statistics": {}, "held_by": "", "part": "whole", "part_p": 0.1}
    given |= {"caption_gap": math.nan, "caption_gap_p": math.nan, "share": 0.25, "curve": {}, "notes": ["no controls"]}
    given |= {"map": np.zeros((2, 2)), "mask": np.zeros((2, 2), dtype=bool), **more}
    answer = Answer("a.png", "d" * 64, caption, verdict, **given)
    about = {"model": "a model", "weights": "0123456789abcdef", "versions": {"cryptomnesia": "1.0"}}
    return sentences(Found(about, [answer], [1.0], controls, {}, 0.05, 0.01, 0.05), answer)


def test_the_page_of_the_documentation_has_the_same_sentences():
    quoted = " ".join(line.removeprefix(">").strip() for line in PAGE.read_text(encoding="utf-8").splitlines())
    for text in (EXAMINED, COMPARED, *ANSWERS.values(), LIMITS):
        assert text in quoted
    assert set(ANSWERS) == set(MEANINGS)


@pytest.mark.parametrize("verdict", MEANINGS)
def test_what_is_known_is_filled_in(verdict):
    made = [Restoration(2.0, 1, 1, 0.1, 0.1, 0.0), Restoration(math.inf, 3, 2, 0.1, 0.1, 0.04)]
    first, compared, said, limits = paragraphs(verdict, restorations=made)
    assert first.endswith("SHA-256 " + "d" * 64 + ", with cryptomnesia 1.0.")
    assert "weights 0123456789ab, holds the picture a.png" in first
    assert "with 39 control pictures" in compared
    assert "at an error rate of 0.05:" in compared
    assert limits == LIMITS
    left = {name for text in (first, compared, said) for name in re.findall(r"\[([^]]+)\]", text)}
    assert left == ONLY_THE_READER_KNOWS - (set() if verdict == "reproducible" else {"caption"})
    if verdict in ("reproducible", "retained"):
        assert "in 2 of 3 tries" in said


def test_what_was_not_measured_is_not_said():
    *_, said, _ = paragraphs("retained", caption="", part="window")
    assert said == (
        "The model restored the part of the picture that the mask holds, 25% of it, from noise better than comparable "
        "pictures (p = 0.05)."
    )
    made = [Restoration(math.inf, 3, 3, 0.1, 0.1, 0.0)]
    *_, said, _ = paragraphs("reproducible", caption="", restorations=made)
    assert said.startswith(
        "The model made the picture from nothing but noise in 3 of 3 tries. Of the controls, 0% came as near."
    )
    assert "caption" not in said
    _, said, _ = paragraphs("undecided", controls=0)
    assert said == "The examination did not answer the question: no controls."
