"""Pictures are looked for in a model that holds two of them, and in small random models of every family."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

from cryptomnesia import UsageError, find
from cryptomnesia.finding import work
from cryptomnesia.finding.answers import MEANINGS
from cryptomnesia.finding.restoring import NOISY
from cryptomnesia.finding.verb import out_of_reach
from cryptomnesia.testing.miniatures import stable_diffusion, unconditional
from cryptomnesia.testing.miniatures.diffusion_transformers import pixart
from family_cases import CASES, FLOWS, MORE
from looked_for import CALL, CAPTIONED, HELD, holder, picture, pictures

FILES = {"found.json", "index.html", "find.json"}
CAPTIONS = ["a red ring", "a blue star", "a pink disc"]
LOOKED_FOR = [picture(CAPTIONED), picture(HELD), picture(4)]


def search(folder=None, *, images=LOOKED_FOR, captions=CAPTIONS, count=9, alpha=0.2, model=None, **more):
    """With as few controls as two p-values at a rate of 20% take."""
    texts = None if captions is None else [f"a green star {number}" for number in range(count)]
    controls = pictures(100, count) or None
    given = {name: value for name, value in {**CALL, **more}.items() if value is not None}
    return find(
        model or holder(), images, captions, controls, control_captions=texts, output=folder, alpha=alpha, **given
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished search, and what it has found."""
    folder = tmp_path_factory.mktemp("found") / "whole"
    return folder, search(folder)


def test_what_the_model_holds_is_found_and_nothing_else(whole):
    _, found = whole
    captioned, held, other = found.answers
    assert captioned.verdict == "reproducible"
    assert "caption" in captioned.held_by
    assert held.verdict == "retained"
    assert "model" in held.held_by
    assert other.verdict == "not evidenced"
    assert other.held_by == ""
    assert (captioned.p_value, held.p_value) == (0.2, 0.2)
    assert other.p_value > 0.2
    assert found.counts == {"reproducible": 1, "retained": 1, "not evidenced": 1, "undecided": 0}
    assert found.exit_code == 1
    # nothing but the caption of the first brings it back from pure noise
    assert [restoration.copies for restoration in captioned.restorations] == [1] * (len(captioned.restorations) - 1) + [
        3
    ]
    assert held.restorations[0].copies == 1
    assert held.restorations[-1].copies == 0
    # the other is held by the unconditional branch, and so comes back under any caption
    for name in ("restorations_without", "restorations_other"):
        assert [one.copies for one in getattr(captioned, name)] == [0] * 3
        back = getattr(held, name)
        assert [one.copies for one in back] == [1, 0, 0]
        assert [one.ratio for one in back] == [one.ratio for one in held.restorations if one.ratio >= NOISY]
        assert back[0].controls == 0
    # the first answer, under its caption from pure noise three times, and from much noise once without and with another
    assert held.evaluations == 24 + 43 + 2 * 21
    assert held.scale["none"] > captioned.scale["none"]
    assert captioned.scale["own"] > captioned.scale["none"]
    assert captioned.scale_gap["own"] == captioned.scale["own"] - captioned.scale["none"]
    assert captioned.scale_gap_p["own"] == captioned.scale_p["own"] == 0.1
    # another caption says nothing to this model
    assert held.scale_gap == {"own": 0, "other": 0}
    assert captioned.scale_map.shape == captioned.map.shape
    assert captioned.scale_map.min() > other.scale_map.mean()
    assert captioned.scale_within_p == captioned.part_p == 0.1
    assert set(captioned.curvature) == {"none"}
    assert captioned.caption_gap > 5
    assert captioned.curve["own"][0] < 1e-6 < captioned.curve["none"][0]


def test_with_five_hundredths_and_enough_controls_the_same_is_found():
    found = search(count=39, alpha=0.05, images=LOOKED_FOR[:2], captions=CAPTIONS[:2])
    assert [answer.verdict for answer in found.answers] == ["reproducible", "retained"]
    assert [answer.p_value for answer in found.answers] == [0.05, 0.05]


def test_without_controls_nothing_is_decided(caplog, tmp_path):
    found = search(tmp_path, count=0, captions=["a red ring", "a blue star", ""])
    assert [answer.verdict for answer in found.answers] == ["undecided"] * 3
    assert found.exit_code == 3
    assert caplog.messages == [
        "without controls nothing can be decided; give pictures like these that the model never saw"
    ]
    read = json.loads((tmp_path / "found.json").read_text())
    assert [one["p_value"] for one in read["pictures"]] == [None] * 3
    assert list(read["pictures"][2]["curve"]) == ["none", "other"]
    assert "p =" not in (tmp_path / "index.html").read_text()


def test_a_search_is_the_same_every_time(whole, tmp_path):
    folder, found = whole
    search(tmp_path / "again")
    assert (tmp_path / "again" / "found.json").read_bytes() == (folder / "found.json").read_bytes()
    for name in ("index.html", f"picture-{found.answers[0].sha256[:12]}.html"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("stage", ["controls", "pictures", "controls-closer", "pictures-closer"])
def test_a_search_that_was_stopped_goes_on(whole, tmp_path, monkeypatch, stage):
    folder, _ = whole
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) == 6
    order = ["controls", "pictures", "controls-closer", "pictures-closer"]
    for path in [folder / "find.json", *parts]:
        if path.name == "find.json" or order.index(path.stem.rpartition("-")[0]) < order.index(stage):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    made, part = [], work.Finding.part

    def stops(self, wanted, number, report):
        made.append(wanted.files[number].name)
        if len(made) == 2:
            raise KeyboardInterrupt
        part(self, wanted, number, report)

    with monkeypatch.context() as patch:
        patch.setattr(work.Finding, "part", stops)
        if stage == "pictures-closer":
            search(tmp_path)
        else:
            with pytest.raises(KeyboardInterrupt):
                search(tmp_path)
            assert not (tmp_path / "found.json").exists()
            search(tmp_path)
    assert made[0].startswith(stage)
    assert (tmp_path / "found.json").read_bytes() == (folder / "found.json").read_bytes()


def test_what_is_done_is_not_made_again(whole, monkeypatch):
    folder, found = whole
    monkeypatch.setattr(work.Finding, "part", None)
    assert search(folder).to_json() == found.to_json()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"guidance_scale": 3.0}, "fingerprint"),
        ({"captions": ["a red ring", "a blue star", "a grey disc"]}, "pictures"),
        ({"count": 10}, "controls"),
        ({"alpha": 0.25}, "alpha"),
    ],
)
def test_a_folder_with_another_search_is_refused(whole, changed, named):
    folder, _ = whole
    with pytest.raises(UsageError, match=rf"holds a search with other settings: .* differs in {named}"):
        search(folder, **changed)


def test_by_default_no_picture_is_written(whole):
    folder, found = whole
    assert found.thumbnails == {}
    names = {path.name for path in folder.iterdir() if path.name != ".lock"}
    assert (
        names
        - {path.name for path in folder.glob("*.safetensors")}
        - {path.name for path in folder.glob("picture-*.html")}
        == FILES
    )
    for path in folder.glob("*.safetensors"):
        assert b'"pictures"' not in path.read_bytes()
    # nor any caption
    for path in folder.iterdir():
        for caption in (*CAPTIONS, "green star"):
            assert caption.encode() not in path.read_bytes(), path.name


def test_numbers_that_are_not_known_are_null(whole):
    folder, _ = whole
    text = (folder / "found.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    read = json.loads(text)
    assert [one["caption"] for one in read["pictures"]] == [len(caption) for caption in CAPTIONS]
    assert read["pictures"][0]["restorations"][-1]["ratio"] == "pure noise"
    assert read["expected_by_chance"] == 0.6
    assert text == json.dumps(whole[1].to_json(), indent=1) + "\n"
    assert set(read["meanings"]) == set(MEANINGS) - {"undecided"}


def test_several_answers_can_be_held_to_a_share_of_false_ones(caplog):
    # the smallest p-value is 2/10, more than half of 20% may be false
    found = search(fdr=0.05)
    assert [answer.verdict for answer in found.answers] == ["not evidenced"] * 3
    assert [answer.p_value for answer in found.answers][:2] == [0.2, 0.2]
    assert caplog.messages == [
        "no picture can be called retained at a false-discovery rate of 0.05 with 9 controls; that takes 39 at least"
    ]


@pytest.mark.parametrize(
    ("pictures", "controls", "fdr", "doubt"),
    [
        (1, 39, 0.05, ""),
        (1_000, 39, 0.1, "only if 500 of the 1000 or more stand out; with 19999 one is enough"),
        (1_000, 19_999, 0.1, ""),
        (1_000, 19_998, 0.1, "only if 2 of the 1000 or more stand out; with 19999 one is enough"),
        (
            5,
            38,
            0.02,
            "no picture can be called retained at a false-discovery rate of 0.02 with 38 controls; that takes 99",
        ),
    ],
)
def test_controls_too_few_for_a_share_of_false_ones_are_named(pictures, controls, fdr, doubt):
    found = out_of_reach(pictures, controls, 0.05, fdr)
    assert doubt in found if doubt else found == ""


def test_a_picture_without_a_caption_is_looked_for_without_one():
    found = search(captions=["", "a blue star", ""])
    captionless, held, _ = found.answers
    assert "own" not in captionless.p_values
    assert "it has no caption, so it was looked for without one alone" in captionless.notes
    assert captionless.verdict != "reproducible"
    assert not captionless.restorations
    assert math.isnan(captionless.caption_gap)
    assert held.verdict == "retained"


def test_what_a_picture_without_a_caption_brings_back_is_kept(tmp_path):
    found = search(tmp_path, images=LOOKED_FOR[1:2], captions=[""], thumbnails=True)
    [held] = found.answers
    assert not held.restorations
    assert [one.copies for one in held.restorations_without] == [1, 0, 0]
    assert {name: len(files) for name, files in found.thumbnails[0].items()} == {
        "picture": 1,
        "own": 5,
        "none": 3,
        "other": 3,
    }
    page = (tmp_path / f"picture-{held.sha256[:12]}.html").read_text(encoding="utf-8")
    assert "It comes back without a caption, from noise up to σ/α = 2.5." in page


def test_controls_without_captions_leave_only_what_needs_none():
    found = find(holder(), LOOKED_FOR, CAPTIONS, pictures(100, 9), alpha=0.2, **CALL)
    assert all("own" not in answer.p_values for answer in found.answers)
    assert found.answers[1].verdict == "retained"
    note = "0 controls have captions, too few for a comparison under its caption at a rate of 0.2, so it was looked for"
    assert f"{note} without one alone" in found.answers[0].notes
    # what comes back under captions cannot be compared with what comes back without any
    captioned = [answer for answer in found.answers if answer.caption]
    assert all("restored" not in answer.p_values and not answer.restorations for answer in captioned)


def test_the_page_says_what_was_cut_off(tmp_path):
    found = search(tmp_path, images=[picture(HELD).resize((64, 32))], captions=["a star"])
    [answer] = found.answers
    note = "only the middle 50% of the picture is looked at, at 16 × 16 pixels"
    assert note in answer.notes
    assert note in (tmp_path / f"picture-{answer.sha256[:12]}.html").read_text(encoding="utf-8")


def test_a_picture_that_is_given_twice_has_one_answer(caplog):
    found = search(images=[picture(HELD), picture(4), picture(HELD)], captions=["a star", "a disc", "a bar"])
    assert [answer.name for answer in found.answers] == ["picture 0", "picture 1"]
    assert caplog.messages == ["of 3 pictures some were given more than once; 2 are left"]


def test_a_control_that_is_one_of_the_pictures_is_left_out(caplog):
    with pytest.raises(UsageError, match=r"^got 3 controls, and a rate of 0\.2 needs at least 4; give more, or an al"):
        find(holder(), [picture(HELD)], None, [picture(HELD), *pictures(100, 3)], alpha=0.2, **CALL)
    assert caplog.messages == ["left out the control picture 0, which shows the picture picture 0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": []}, r"^got no pictures; give at least one$"),
        ({"images": "none.png", "captions": None}, r"^no file none\.png; give the path of a picture, or a folder"),
        ({"captions": CAPTIONS[:2]}, r"^got 2 captions for 3 pictures; give one for each$"),
        ({"alpha": 0.01}, r"^got 9 controls, and a rate of 0\.01 needs at least 99; give more, or an alpha of 0\.1$"),
        ({"alpha": 1.5}, r"^got alpha = 1\.5, expected to be less than 1; give another value$"),
        ({"workers": 2}, r"^got the model as an object, and several workers load it by its name; give its name$"),
        ({"engine": "spark"}, r"^got the engine spark; give local, ray, or the address"),
        ({"num_inference_steps": 0}, r"^got 0 steps; give at least 1$"),
        ({"height": 32}, r"^got height 32 and width None; give both or neither$"),
        ({"stepz": 3}, r"stepz"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_no_folder(tmp_path, given, message):
    with pytest.raises(UsageError, match=message):
        search(tmp_path / "none", **given)
    assert not (tmp_path / "none").exists()


def test_pictures_on_which_the_output_is_not_finite_are_undecided():
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.weight.fill_(torch.nan)
    found = search(model=pipe)
    assert [answer.verdict for answer in found.answers] == ["undecided"] * 3
    assert found.exit_code == 3
    assert all("the model's output on it is not finite" in answer.notes[0] for answer in found.answers)


def test_a_picture_plainer_than_all_controls_is_undecided():
    plain = Image.new("RGB", (16, 16), (90, 90, 90))
    found = search(images=[plain], captions=["a grey square"])
    assert found.answers[0].verdict == "undecided"
    assert "it is plainer than all controls, so it cannot be compared with them; give others" in found.answers[0].notes


def test_a_safety_checker_is_refused():
    pipe = stable_diffusion()
    pipe.safety_checker = object()
    with pytest.raises(UsageError, match=r"has a safety checker, which may blacken what comes back; leave it out"):
        search(model=pipe)


def test_another_size_is_that_of_the_call():
    found = search(
        model=stable_diffusion(), images=[picture(5).resize((32, 32))], captions=["a"], height=32, width=24, count=4
    )
    assert found.answers[0].map.shape == (16, 12)


@pytest.mark.parametrize(
    "name",
    ["sd-v", "sd unguided", "sdxl", "sd3", "flux distilled", "ddim", "ddpm"],
)
def test_every_family_is_asked(name):
    case = CASES[name]
    found = search(model=case.make(), images=LOOKED_FOR[:2], captions=CAPTIONS[:2], count=4, **{**STEPS, **case.call})
    conditions = {"none"} if name.startswith("dd") else {"own", "none", "other"}
    for answer in found.answers:
        assert set(answer.curve) == conditions
        assert math.isnan(answer.p_value) or 1 / 5 <= answer.p_value <= 1
        assert np.isfinite(list(answer.curve.values())).all()
        assert answer.mask.dtype == bool
        if answer.restorations:
            assert math.isinf(answer.restorations[-1].ratio)
            assert len(answer.restorations) > 1 or name.startswith("dd")


STEPS = {"num_inference_steps": None, "guidance_scale": None}
"""The defaults of the search above are those of one pipeline."""


@pytest.mark.parametrize(
    "name", ["image to image", "inpainting", "controlnet", "sd3 image to image", "flux inpainting", "flux 2 edited"]
)
def test_a_call_with_a_picture_is_refused(name):
    case = (MORE | FLOWS)[name]
    message = (
        r"^a \w+ begins from a picture, or is given one; give the pipeline of the same model that begins from nois"
    )
    with pytest.raises(UsageError, match=message):
        search(model=case.make(), **{**STEPS, **case.call})


def test_a_model_without_captions_makes_what_it_holds_unasked():
    found = search(model=unconditional(DDPMPipeline), captions=None, num_inference_steps=3, guidance_scale=None)
    for answer in found.answers:
        assert set(answer.p_values) <= {"none", "restored"}
        assert answer.held_by in ("", "model")
        assert all(math.isinf(one.ratio) for one in answer.restorations)


def test_a_base_model_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="the baseline does not fit the model: "):
        search(model=stable_diffusion(), checkpoint=pixart())


def test_what_the_base_model_knows_as_well_is_not_held_by_training():
    found = search(model=stable_diffusion(), checkpoint=stable_diffusion(), num_inference_steps=2)
    for answer in found.answers:
        # the same error everywhere, so that every control is as unusual
        assert answer.p_values["base"] == 1
        assert answer.curve["base"] == answer.curve["own"]
        if answer.curvature:
            assert answer.curvature["base"] == pytest.approx(0, abs=1e-6)
            assert answer.curvature["none"] > 0
    assert any(answer.curvature for answer in found.answers)


def test_several_processes_find_the_same(tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "tiny")
    for number, one in enumerate(LOOKED_FOR):
        one.save(tmp_path / f"{number}.png")
    images = sorted(tmp_path.glob("*.png"))
    given = {"images": images, "count": 9, "model": str(tmp_path / "tiny"), "num_inference_steps": 2, "batch_size": 3}
    alone = search(tmp_path / "one", **given)
    seen = []
    both = search(tmp_path / "two", workers=2, progress=lambda *step: seen.append(step), **given)
    assert both.to_json() == alone.to_json()
    assert (tmp_path / "one" / "found.json").read_bytes() == (tmp_path / "two" / "found.json").read_bytes()
    assert {what for what, done, every in seen if done == every} >= {"controls", "pictures"}
