"""The pages of `find`: complete, without scripts and network, and safe against names of pictures."""

import math
import re

import numpy as np
import pytest

from browsing import Reader
from cryptomnesia import Answer, Found
from cryptomnesia.finding.answers import Restoration
from cryptomnesia.images import png
from cryptomnesia.report.found import number, pages

NAME = '<script>alert("a")</script>&.png'
PNG = png(np.zeros((4, 4, 3), dtype=np.uint8))

KEPT = {"picture": [PNG], "own": [PNG] * 2, "none": [PNG], "other": [PNG]}


def answer(name=NAME, verdict="reproducible", digest="a", **more):
    given = {
        "p_value": 0.05,
        "p_values": {"own": 0.025, "none": 0.5, "restored": 0.05},
        "statistics": {"own/whole": 2.0},
        "held_by": "caption",
        "part": "window",
        "part_p": 0.025,
        "caption_gap": 1.5,
        "caption_gap_p": 0.025,
        "share": 0.25,
        "map": np.arange(4.0).reshape(2, 2),
        "mask": np.arange(4).reshape(2, 2) == 3,
        "curve": {"own": [0.1, 0.2, 0.9], "none": [0.5, 0.7, 1.1], "other": [0.5, 0.7, 1.0]},
        "restorations": [Restoration(2.5, 1, 1, 0.1, 0.2, 0.0), Restoration(math.inf, 3, 2, 0.2, 0.1, 0.05)],
        "restorations_without": [Restoration(math.inf, 1, 1, 0.3, 0.1, 0.04)],
        "restorations_other": [Restoration(math.inf, 1, 1, 0.3, 0.1, 0.06)],
        "scale": {"own": 1.0},
        "scale_p": {"own": 0.025},
        "scale_gap": {"own": 2.0},
        "scale_gap_p": {"own": 0.075},
        "scale_map": np.arange(4.0).reshape(2, 2),
        "curvature": {"none": 3.0, "base": 4.0},
        "curvature_p": {"none": 0.125, "base": 0.15},
        "notes": [f"a note about {name}"],
        **more,
    }
    return Answer(name, digest * 64, f"a caption {name}", verdict, **given)


def found(*answers, **more):
    given = {
        "about": {"model": "<b>model</b>", "weights": "0123456789abcdef", "versions": {"cryptomnesia": "1.0"}},
        "ratios": [0.5, 5.0, 50.0],
        "controls": 39,
        "controls_curve": {name: [[0.4, 0.6, 0.8], [0.6, 0.8, 1.0], [0.9, 1.0, 1.2]] for name in ("own", "none")},
        "alpha": 0.05,
        "rate": 0.05,
        "smallest": 0.05,
        **more,
    }
    return Found(answers=answers, **given)


@pytest.mark.parametrize("thumbnails", [{}, {0: KEPT}])
def test_pages_ask_nobody_for_anything_and_names_are_text(thumbnails):
    made = dict(pages(found(answer(), answer("b.png", "not evidenced", "b"), thumbnails=thumbnails)))
    assert list(made) == ["index.html", "picture-aaaaaaaaaaaa.html", "picture-bbbbbbbbbbbb.html"]
    for text in made.values():
        read = Reader(text)
        assert {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "b"} == set()
        for tag, attributes in read.tags:
            assert not [name for name in attributes if name.startswith("on")]
            if tag == "img":
                assert attributes["src"].startswith("data:image/png;base64,")
            if tag == "a":
                assert re.fullmatch(r"[\w-]+\.html", attributes["href"])
        assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", text)
        policy = next(one["content"] for tag, one in read.tags if one.get("http-equiv"))
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
        assert "<b>model</b>" in read.text
    assert NAME in Reader(made["index.html"]).text
    assert f"a note about {NAME}" in Reader(made["picture-aaaaaaaaaaaa.html"]).text


def test_a_page_says_what_was_measured_and_no_caption():
    made = dict(pages(found(answer(), thumbnails={0: KEPT})))
    text = " ".join(Reader(made["picture-aaaaaaaaaaaa.html"]).text.split())
    for part in (
        "reproducible (p = 0.05 against 39 controls)",
        "Its error is low under its caption.",
        "A part of the picture stands out most: see the mask.",
        "noise 2.5: copy (1 of 1)distance 0.1, edges +0.20controls as near: 0%",
        "pure noise: copy (2 of 3)",
        "without a caption pure noise: copy (1 of 1)",
        "the same minus that without a caption, under its caption20.075",
        "curvature difference to the unconditional branch (arXiv:2605.26756), mean30.125",
        "curvature difference to the base model (arXiv:2605.26756), mean40.15",
        "weights 0123456789ab, holds the picture",
        "Under the caption [caption] the model made the part of the picture that the mask holds, 25% of it, from "
        "nothing but noise in 2 of 3 tries. Of the controls, 5% came as near under their captions. It restored the "
        "picture from noise better than comparable pictures (p = 0.05).",
        "It also comes back without a caption, from pure noise. So the unconditional branch alone holds it.",
        "under its caption (p = 0.025)",
        "the mask: 25% of the picture; of a control it would hold 5% on average (p = 0.025 that",
    ):
        assert part in text
    assert "comes back under the caption of another picture" not in text
    assert "a caption <" not in text
    assert made["picture-aaaaaaaaaaaa.html"].count("<img") == 8


def test_without_thumbnails_only_map_and_mask_are_pictures():
    page = dict(pages(found(answer())))["picture-aaaaaaaaaaaa.html"]
    assert page.count("<img") == 3
    assert page.count("not kept") == 4
    assert "--thumbnails" in page


def test_an_undecided_picture_has_a_page():
    nothing = {
        "p_value": math.nan,
        "p_values": {},
        "statistics": {},
        "held_by": "",
        "part": "whole",
        "caption_gap": math.nan,
    }
    nothing |= {
        "caption_gap_p": math.nan,
        "restorations": (),
        "restorations_without": (),
        "scale": {},
        "map": np.zeros((1, 1)),
        "share": 0.0,
    }
    nothing |= {"restorations_other": (), "scale_gap": {}, "scale_map": np.full((1, 1), math.nan), "curvature": {}}
    nothing |= {"part_p": math.nan}
    nothing |= {"mask": np.zeros((1, 1), dtype=bool), "curve": {"none": [0.5, 0.5, 0.5]}}
    made = dict(pages(found(answer(verdict="undecided", **nothing), controls=0, controls_curve={})))
    text = " ".join(Reader(made["picture-aaaaaaaaaaaa.html"]).text.split())
    assert "undecided. Nothing is said; a note says why." in text
    assert "the mask" not in text
    assert "nan" not in text.lower()


def test_lines_and_bands_lie_within_the_drawing():
    page = dict(pages(found(answer())))["picture-aaaaaaaaaaaa.html"]
    points = re.findall(r'points="([^"]+)"', page)
    # two bands and three lines
    assert len(points) == 5
    for point in " ".join(points).split():
        x, y = map(float, point.split(","))
        assert 44 <= x <= 452
        assert 8 <= y <= 176


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "–"), (None, "–"), (math.inf, "∞"), (0.12345, "0.123")])
def test_numbers_are_short(value, shown):
    assert number(value) == shown
