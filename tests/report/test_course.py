"""The course of a training in words, in a terminal, and as a page in a real browser."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from browsing import CONTRAST, Reader
from cryptomnesia.finetuning.course import Course, Point, Seen
from cryptomnesia.report.console import print_course
from cryptomnesia.report.copies import copied_pictures, table, verdict, what_helps
from cryptomnesia.report.course import page
from cryptomnesia.report.drawing import round_values

EVIL = '<script>alert("a")</script>&\x1b[31m.png'
NAMES = [EVIL, *(f"my photographs of last summer/picture number {number}.jpg" for number in range(1, 24))]
WHOLE = (0.0, 0.0, 1.0, 1.0)


def seen(copies=0, *, part=WHOLE, p_value=math.nan, file="", maps=()):
    score = 0.2 if copies else -0.3
    learnt = 0.1 + copies / 4
    return Seen(4, copies, copies >= 2, score, "edges", part, learnt, p_value, seed=5, file=file, maps=dict(maps))


def point(step, copied=(), *, scale=1.0, held=0.5, known=(), kept=False, **more):
    """A checkpoint that copies these of the 24 pictures, one of two of them only in part, and knows others well."""
    pictures = []
    for number in range(len(NAMES)):
        files = {"file": f"images/{step} #{number}.png", "maps": {"curvature": f"images/{step} #{number}.map.png"}}
        part = (0.25, 0.5, 0.75, 1.0) if number % 2 else WHOLE
        pictures.append(
            seen(3, part=part, p_value=held / 10, **files if kept else {})
            if number in copied
            else seen(int(number == 7 and step > 0), p_value=held / 10 if number in known else held)
        )
    name = f"checkpoint-{step}" if step else "base"
    return Point(name, step, scale, "d" * 64 if step else "", pictures, **more)


def course(*points, **more):
    about = {"base": EVIL, "versions": {"cryptomnesia": "1.0", "torch": "2"}, "seeds": [5, 6], "guidance": 7.5}
    return Course(about, NAMES, ["a" * 64] * len(NAMES), points, **more)


@pytest.fixture
def copying():
    """Copies nothing at step 900, three pictures at 1,200, and more after; the LoRA may have a scale of 0.6."""
    measured = {"others": 40, "held": 0.5}
    points = (
        point(0, diversity=1.0, flagged=0.04, **measured),
        point(300, diversity=0.97, flagged=0.04, **measured),
        point(900, diversity=0.83, known=range(4), flagged=0.13, **measured),
        point(1200, (0, 1, 2), known=range(9), diversity=0.6, flagged=0.33, elsewhere=1, kept=True, **measured),
        point(2400, range(12), known=range(18), diversity=0.4, flagged=0.79, elsewhere=3, kept=True, **measured),
    )
    scales = (
        point(2400, scale=0.2, diversity=0.98),
        point(2400, scale=0.6, diversity=0.8),
        point(2400, (0, 1), scale=0.8, diversity=0.6),
        point(2400, range(12), scale=1.0, diversity=0.4),
    )
    return course(
        *points, scales=scales, duplicates=[(EVIL, "b.png"), ("c.png", "d.png")], notes=[f"A note about {EVIL}."]
    )


@pytest.fixture
def harmless():
    """No checkpoint copies anything, and nothing was compared with held-out pictures."""
    return course(point(0, held=math.nan), point(500, held=math.nan), point(1000, held=math.nan))


@pytest.fixture
def beside(tmp_path):
    """The pictures that the page of `copying` shows."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(12):
        step = 1200 if number < 3 else 2400
        for kind in (".png", ".training.png", ".map.png"):
            path = tmp_path / "images" / f"{step} #{number}{kind}"
            path.parent.mkdir(exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
            made.append(path)
    return made


def test_the_verdict_names_the_step_the_interval_and_the_checkpoint_to_keep(copying):
    assert verdict(copying) == (
        "Copying starts at step 1,200: 3 of 24 pictures come back (95% interval 2.7% to 32%); "
        "at step 900 none does. Keep the checkpoint checkpoint-900."
    )
    assert what_helps(copying) == [
        "Fewer steps: checkpoint-900 (step 900) copies no picture.",
        "A lower LoRA scale: at 0.6, checkpoint-2400 copies no picture.",
    ]


def test_the_verdict_without_a_copy_has_an_interval_as_well(harmless):
    assert verdict(harmless) == ("No checkpoint up to step 1,000 copies a picture: 0 of 24 (95% interval 0% to 14%).")
    assert what_helps(harmless) == []


def test_pictures_that_come_back_earlier_are_named_first():
    found = course(point(0), point(50, (4,)), point(100, (4, 5)))
    assert [(number, first.step) for number, first in copied_pictures(found)] == [(4, 50), (5, 100)]
    assert verdict(course(point(0))) == "No checkpoint was measured, only the base model."


def test_no_checkpoint_is_recommended_if_the_first_one_copies():
    scales = (point(100, scale=0.0), point(100, (1,), scale=0.5))
    first = course(point(0), point(100, (1,)), scales=scales)
    assert verdict(first).endswith("; no earlier checkpoint was measured, so there is none to keep.")
    assert what_helps(first) == [
        "A lower LoRA scale does not help: the last checkpoint still copies at 0.5, the lowest that was tried."
    ]


def test_tables_have_columns_for_what_was_measured(copying, harmless):
    first = (("step", lambda point: str(point.step)),)
    headings, lines = table(copying, copying.points, first)
    assert headings == ["step", "copied", "95% interval", "held", "elsewhere", "flagged", "diversity"]
    assert lines[3] == ["1200", "3 of 24", "2.7% to 32%", "9 of 24", "1 of 40 images", "33%", "60%"]
    headings, lines = table(harmless, harmless.points, first)
    assert headings == ["step", "copied", "95% interval"]
    assert lines[0] == ["0", "0 of 24", "0% to 14%"]


def test_the_terminal_says_the_same(copying, harmless, capsys):
    print_course(copying)
    said = capsys.readouterr().out
    assert verdict(copying) in " ".join(said.split())
    for part in (
        "Fewer steps: checkpoint-900",
        "in the folder more than once: c.png, d.png",
        "picture number 1.jpg: from step 1,200, 3 of 4 images",
        "and 2 pictures more",
    ):
        assert part in said
    assert "\x1b" not in said
    print_course(harmless)
    said = capsys.readouterr().out
    assert "Fewer steps" not in said
    assert "nan" not in said


@pytest.mark.parametrize("state", ["copying", "harmless", "base", "nothing"])
def test_the_page_asks_nobody_for_anything_and_names_are_text(state, request):
    made = {"base": lambda: course(point(0)), "nothing": course}
    shown = made[state]() if state in made else request.getfixturevalue(state)
    text = page(shown)
    read = Reader(text)
    assert verdict(shown) in read.text
    assert {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object"} == set()
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        if tag == "img":
            assert re.fullmatch(r"\./images/\d+%20%23\d+(\.training|\.map)?\.png", attributes["src"])
            assert attributes["alt"]
    assert "http" not in text.replace("http-equiv", "")
    assert EVIL in read.text
    assert "nan" not in read.text.lower().split()


def test_the_page_without_pictures_has_no_images(copying):
    bare = [replace(point, seen=[replace(seen, file="", maps={}) for seen in point.seen]) for point in copying.points]
    text = page(replace(copying, points=bare))
    assert "<img" not in text
    assert text.count("<article") == 12
    assert "torch.Generator().manual_seed(5)" in text


def test_the_page_holds_what_a_card_needs(copying):
    read = Reader(page(copying))
    for part in (
        "What helps. Fewer steps: checkpoint-900 (step 900) copies no picture. A lower LoRA scale: at 0.6",
        "repeated pictures are memorized first:",
        "at step 1,200, checkpoint-1200",
        "3 of 4 images under its caption; 3 of 4 at the last checkpoint",
        "+0.20, by edges; a copy is above 0",
        "from 25% to 75% of the height and 50% to 100% of the width",
        "12 pictures are not copied",
        "cryptomnesia 1.0, torch 2",
    ):
        assert part in " ".join(read.text.split())
    frames = [attributes for tag, attributes in read.tags if tag == "rect"]
    assert {(one["x"], one["y"], one["width"], one["height"]) for one in frames} == {("0.5", "0.25", "0.5", "0.5")}
    never = Reader(page(course(point(0), point(50))))
    assert f"{NAMES[7]} (at most 1 of 4 images)" in never.text


def test_lines_lie_within_the_drawing_and_stop_where_nothing_was_measured():
    points = [point(step, held=math.nan, diversity=value) for step, value in ((0, 1.0), (10, 1.4), (20, math.nan))]
    text = page(course(*points))
    lines = dict(re.findall(r'<polyline class="(\w+)" points="([^"]+)"', text.partition("</svg>")[0]))
    assert set(lines) == {"copied", "diversity"}
    assert len(lines["copied"].split()) == 3
    assert len(lines["diversity"].split()) == 2
    for place in " ".join(lines.values()).split():
        x, y = map(float, place.split(","))
        assert 44 <= x <= 452
        assert 40 <= y <= 256


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 2400, [0, 500, 1000, 1500, 2000]), (0.25, 1.0, [0.4, 0.6, 0.8, 1.0])],
)
def test_axes_have_round_values(low, high, values):
    assert round_values(low, high) == pytest.approx(values)


def test_it_fits_narrow_screens_with_all_pictures(show, copying, beside):
    shown = show(page(copying), beside=beside, viewport={"width": 360, "height": 640})
    for summary in shown.locator("summary").all():
        summary.click()
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    shown.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    shown.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    assert shown.evaluate("[...document.images].filter(image => image.naturalWidth === 64).length") == 36


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_legible(show, copying, beside, scheme, width):
    shown = show(page(copying), beside=beside, color_scheme=scheme, viewport={"width": width, "height": 800})
    for summary in shown.locator("summary").all():
        summary.click()
    ratio, where, ground = shown.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    assert (sum(ground[:3]) < 384) == (scheme == "dark")
