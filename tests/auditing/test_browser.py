"""The HTML report in a real browser: Debian's Chromium, without a window."""

import math
from dataclasses import replace

import pytest
from PIL import Image

from browsing import CONTRAST
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import Judged
from cryptomnesia.report.html import html
from tiny_audit import EVIL

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; the test extra brings it")
expect = playwright.expect

# prompt, level, p, share of the picture in the mask
VALUES = [
    ("Pear tree", "confirmed", 0.02, 0.25),
    ("apple tree 10", "corroborated", 0.1, None),
    ("apple tree 9", "suspected", 0.01, 0.5),
    ("plum", "unknown", math.nan, None),
    ("quince", "none", 0.9, None),
]
WORST_FIRST = [prompt for prompt, *_ in VALUES]


@pytest.fixture
def training(tmp_path):
    (tmp_path / "training").mkdir()
    Image.new("RGB", (40, 20), "red").save(tmp_path / "training" / "near.png")
    return tmp_path / "training"


@pytest.fixture
def varied(found):
    """Prompts of every level, that every column orders in another way; the first one has all that there can be."""
    flagged = found.prompts[0].images[0]
    assert flagged["map"] is not None
    prompts = []
    for prompt, level, p, fraction in VALUES:
        unknown = math.isnan(p)
        row = {
            **flagged,
            "seed": 1,
            "level": level,
            "p_value": p,
            "score": p if unknown else flagged["score"],
            "reason": "could not tell: the run ended after 1 of 3 evaluations" if unknown else flagged["reason"],
            "fraction": fraction,
            "action": "none",
        }
        prompts.append(Judged(prompt, Level[level], [row]))
    corner = [[column < 3 and line < 2 for column in range(8)] for line in range(8)]
    full = {
        "mask": corner,
        "region_path": "near.png",
        "region_relative": 0.4,
        "region_p": 0.01,
        "matched_region": True,
        "action": "mitigated",
        "dropped": ["tree"],
        "reason": "without tree p = 0.8",
        "instead": flagged["image"],
        "words": [
            {"text": "Pear", "left_out": 0.1, "gradient": 0.7},
            {"text": "tree", "left_out": 0.5, "gradient": 0.3},
        ],
    }
    prompts[0].images[0] |= full
    return replace(found, prompts=prompts)


POINTS = "lines => lines.map(line => line.getAttribute('points'))"

# A canvas that is read more than once warns on the console, so it is read from a copy.
PIXELS = """canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def listed(page):
    return page.locator("#prompts .prompt").all_inner_texts()


def opened(page):
    return page.locator("#prompts tbody.open .prompt").all_inner_texts()


def test_every_prompt_is_listed_worst_first_and_any_column_orders_them(show, audited, varied):
    page = show(html(varied, audited))
    assert listed(page) == WORST_FIRST
    pear, ten, nine, plum, quince = WORST_FIRST
    expected = {
        "prompt": ([nine, ten, pear, plum, quince], [quince, plum, pear, ten, nine]),
        # what is not known comes last either way
        "smallest p": ([nine, pear, ten, quince, plum], [quince, ten, pear, nine, plum]),
        "region": ([nine, pear, ten, plum, quince], [pear, nine, ten, plum, quince]),
        "evidence": (WORST_FIRST, WORST_FIRST[::-1]),
    }
    for column, (once, again) in expected.items():
        header = page.locator("#prompts").get_by_role("columnheader", name=column, exact=True)
        ways = []
        for order in (once, again):
            header.get_by_role("button").click()
            assert listed(page) == order
            ways.append(header.get_attribute("aria-sort"))
        assert sorted(ways) == ["ascending", "descending"]
        assert page.locator("#prompts th:not([aria-sort=none])").count() == 1


def test_prompts_are_searched_and_filtered(show, audited, varied):
    page = show(html(varied, audited))
    page.get_by_role("searchbox", name="Search prompts").fill("TREE")
    assert listed(page) == WORST_FIRST[:3]
    level = page.get_by_role("combobox", name="Level of evidence")
    assert level.locator("option").all_inner_texts()[1] == "confirmed (1)"
    level.select_option("suspected")
    assert listed(page) == ["apple tree 9"]
    expect(page.get_by_role("status")).to_have_text("1 of 5 prompts")
    level.select_option("unknown")
    assert listed(page) == []
    page.get_by_role("searchbox").fill("")
    assert listed(page) == ["plum"]


def test_the_keyboard_is_enough(show, audited, varied):
    page = show(html(varied, audited))
    press = page.keyboard.press

    def focused():
        return page.locator("tbody:focus-within .prompt").inner_text()

    for key, place in [("j", 0), ("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0), ("j", 1)]:
        press(key)
        assert focused() == WORST_FIRST[place]
    press("Enter")
    assert opened(page) == [WORST_FIRST[1]]
    press("j")
    press("Enter")
    assert opened(page) == WORST_FIRST[1:3]
    press("Escape")
    assert opened(page) == []
    assert focused() == WORST_FIRST[2]
    press("/")
    page.keyboard.type("pjk/")  # letters are letters there
    expect(page.get_by_role("searchbox")).to_have_value("pjk/")
    page.get_by_role("searchbox").fill("plum")
    press("Enter")
    assert focused() == "plum"
    press("Enter")
    press("Enter")
    assert opened(page) == []
    # keys of the browser stay its own
    press("Control+j")
    assert focused() == "plum"


def test_a_prompt_opens_to_its_evidence(show, audited, varied, training):
    page = show(html(varied, audited, embed_images=True, training=training))
    button = page.get_by_role("button", name="Pear tree")
    expect(button).to_have_attribute("aria-expanded", "false")
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    assert page.url.endswith("#prompt-1")
    part = page.get_by_role("region", name="Seed 1")
    pictures = part.locator("img").all()
    assert len(pictures) == 4  # generated, under the map, nearest, made again
    assert all(shown.evaluate("image => image.decode().then(() => image.naturalWidth)") for shown in pictures)
    expect(part.get_by_role("img", name="nearest training image inside the mask: near.png, a match")).to_be_visible()
    expect(part.get_by_role("img", name="made again without tree")).to_be_visible()
    expect(part.get_by_text("without tree p = 0.8")).to_be_visible()
    pear, tree = part.locator(".word").all()
    assert (pear.inner_text(), tree.inner_text()) == ("Pear", "tree")
    colours = [word.evaluate("word => getComputedStyle(word).backgroundColor") for word in (pear, tree)]
    assert colours[0] != colours[1]
    leading = "Guidance lost without the word: tree 50% (gradient 30%), Pear 10% (gradient 70%); the gradient names"
    expect(part.get_by_text(leading)).to_be_visible()
    part.get_by_text("All words").click()
    assert part.locator("details li").all_inner_texts() == ["tree 50% (gradient 30%)", "Pear 10% (gradient 70%)"]
    steps = part.get_by_role("img", name="Score after every evaluation").locator("polyline")
    assert [len(points.split()) for points in steps.evaluate_all(POINTS)] == [3, 3]
    slider = part.get_by_role("slider", name="Opacity of the map")
    map_ = part.get_by_role("img", name="Map, seed 1")
    seen = []
    for key in ("Home", "End"):
        slider.press(key)
        seen.append(map_.evaluate(PIXELS))
    nothing, all_ = seen
    assert set(nothing[3::4]) == {0}
    assert set(all_[3::4]) == {255}
    mask = part.get_by_role("img", name="Mask, seed 1").evaluate(PIXELS)
    drawn = [value == 255 for value in mask[::4]]
    assert drawn == [value for line in varied.prompts[0].images[0]["mask"] for value in line]
    page.get_by_role("row", name="Pear tree").click()
    assert opened(page) == []
    assert not page.url.endswith("#prompt-1")


def test_without_pictures_it_says_so(show, audited, varied, training):
    page = show(html(varied, audited, training=training))
    page.get_by_role("button", name="Pear tree").click()
    assert page.locator("img").count() == 0
    assert page.get_by_text("picture left out").count() == 3  # generated, nearest, made again
    assert page.get_by_role("slider").count() == 0
    expect(page.get_by_role("img", name="Map, seed")).to_be_visible()
    expect(page.get_by_text("Pictures are left out")).to_be_visible()


def test_a_link_leads_to_a_prompt(show, audited, varied):
    page = show(html(varied, audited), "#prompt-3")
    assert opened(page) == ["apple tree 9"]
    page.get_by_role("searchbox").fill("plum")
    page.evaluate("location.hash = 'prompt-2'")
    expect(page.locator("#prompt-2")).to_be_in_viewport()
    assert opened(page) == ["apple tree 10", "apple tree 9"]
    page.evaluate("location.hash = '<img src=x>'")
    assert len(opened(page)) == 2


def test_charts_set_the_audit_against_its_references(show, audited, varied):
    page = show(html(varied, audited))
    for name in ("Distribution of scores", "Share of images above every score"):
        lines = page.get_by_role("img", name=name).locator("polyline")
        assert lines.count() == 2
        assert not any("NaN" in points for points in lines.evaluate_all(POINTS))
    expect(page.get_by_role("img", name="Distribution of scores").get_by_text("p ≤ 0.5")).to_be_visible()
    expect(page.get_by_role("img", name="1 confirmed, 1 corroborated, 1 suspected, 1 unknown, 1 none")).to_be_visible()


def test_a_run_without_any_score_is_shown(show, audited, varied):
    unknown = [judged for judged in varied.prompts if judged.level is Level.unknown]
    page = show(html(replace(varied, prompts=unknown), audited))
    expect(page.get_by_text("No image has a score.")).to_be_visible()
    page.get_by_role("button", name="plum").click()
    expect(page.get_by_text("could not tell: the run ended after 1 of 3 evaluations")).to_be_visible()


def test_a_run_whose_detector_is_not_installed_is_shown_without_charts(show, audited, varied):
    about = {**varied.about, "methods": {**varied.about["methods"], "detector": "acme"}}
    page = show(html(replace(varied, detector="acme", about=about), audited))
    expect(page.get_by_text("No charts: no installed package registers it.")).to_be_visible()
    expect(page.get_by_text("not in this installation: detector acme")).to_be_visible()
    page.get_by_role("button", name="Pear tree").click()
    part = page.get_by_role("region", name="Seed 1")
    assert part.locator("polyline").count() == 0
    expect(part.get_by_role("img", name="Map, seed 1")).to_be_visible()


@pytest.mark.parametrize(
    ("scheme", "media", "dark"), [("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)]
)
def test_it_is_legible_in_light_in_the_dark_and_on_paper(show, audited, varied, scheme, media, dark):
    page = show(html(varied, audited), color_scheme=scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    for name in WORST_FIRST:
        page.get_by_text(name, exact=True).click()
    ratio, where, ground = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    assert (sum(ground[:3]) < 384) == dark


def test_on_paper_all_evidence_is_open(show, audited, varied):
    page = show(html(varied, audited))
    page.get_by_role("button", name="quince").click()
    page.evaluate("""addEventListener("beforeprint", () => {
      window.printed = [...document.querySelectorAll(".open .prompt")].map(prompt => prompt.innerText);
    })""")
    assert page.pdf().startswith(b"%PDF")
    assert page.evaluate("printed") == [*WORST_FIRST[:3], "quince"]
    assert opened(page) == ["quince"]  # as it was
    page.emulate_media(media="print")
    for name in ("searchbox", "combobox", "slider"):
        assert page.get_by_role(name).count() == 0


def test_it_fits_a_narrow_screen(show, audited, varied, training):
    page = show(html(varied, audited, embed_images=True, training=training), viewport={"width": 320, "height": 640})
    page.get_by_role("button", name="Pear tree").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("embed", [False, True])
def test_nothing_that_a_run_says_runs(show, audited, varied, embed):
    first, *rest = varied.prompts
    row = {**first.images[0], "region_path": EVIL, "reason": EVIL, "dropped": [EVIL], "action": "mitigated"}
    others = ['"><svg onload=alert(1)>', "<style>*{display:none}</style>", "{{7*7}}${alert(1)}", "javascript:alert(1)"]
    prompts = [Judged(text, first.level, [row]) for text in (EVIL, *others)]
    evil = replace(varied, prompts=[*prompts, *rest], about={**varied.about, "model": EVIL})
    page = show(html(evil, audited, embed_images=embed))
    assert [text.split() for text in listed(page)[:5]] == [text.split() for text in (EVIL, *others)]
    for place in range(5):
        page.locator("#prompts button[aria-expanded]").nth(place).click()
    assert page.locator("[id=prompts] :is(svg, style, script, a)[onload]").count() == 0
    assert page.locator("script:not([id^=evidence])").count() == 2
    expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(1)</script>")


def test_a_thousand_prompts_open(show, audited, varied):
    many = [replace(judged, prompt=f"{judged.prompt} {number}") for judged in varied.prompts for number in range(200)]
    page = show(html(replace(varied, prompts=many), audited, embed_images=True))
    assert len(listed(page)) == 1000
    page.get_by_role("searchbox").fill("quince 199")
    assert listed(page) == ["quince 199"]
    page.get_by_role("button", name="quince 199").click()
    assert opened(page) == ["quince 199"]
