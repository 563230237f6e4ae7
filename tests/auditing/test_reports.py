import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from PIL import ExifTags, Image

from cryptomnesia import audit
from cryptomnesia.auditing.comparison import compare
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import SCHEMA, outcome
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_outcome
from cryptomnesia.report.html import _words as words_of_prompt
from cryptomnesia.report.html import html
from cryptomnesia.report.markdown import answers, model_card
from cryptomnesia.report.sarif import sarif
from picture_files import encoded, write_tar
from runs import LONG
from tiny_audit import EVIL, settings


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def evidence_of(page):
    return [
        json.loads(text)
        for text in re.findall(r'<script type="application/json" id="evidence-\d+">(.*?)</script>', page)
    ]


def test_the_page_shows_the_run_and_asks_for_nothing(audited, found):
    page = html(found, audited)
    assert [shown["prompt"] for shown in data_of(page)["prompts"]] == [judged.prompt for judged in found.prompts]
    assert all(image["picture"] is None for images in evidence_of(page) for image in images)
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", page)
    embedded = evidence_of(html(found, audited, embed_images=True))
    for judged, images in zip(found.prompts, embedded, strict=True):
        for row, image in zip(judged.images, images, strict=True):
            kind, content = image["picture"].split(",")
            assert kind == "data:image/png;base64"
            with (
                Image.open(BytesIO(base64.b64decode(content))) as shown,
                Image.open(audited.folder / row["image"]) as made,
            ):
                assert np.array_equal(shown, made)


def test_a_picture_is_shown_small_upright_and_without_what_its_file_says(audited, found, tmp_path):
    facts = Image.Exif()
    facts[ExifTags.Base.Orientation] = 6  # a quarter turn
    facts[ExifTags.Base.Artist] = "somebody"
    Image.new("RGB", (600, 300)).save(tmp_path / "near.jpg", exif=facts, comment=b"somewhere")
    first = found.prompts[0]
    row = {**first.images[0], "whole_path": "near.jpg", "whole_relative": 0.5, "whole_p": 0.01}
    lost = {**row, "whole_path": "gone.jpg"}
    compared = replace(found, prompts=[replace(first, images=[row, lost])])
    (images,) = evidence_of(html(compared, audited, embed_images=True, training=tmp_path))
    near, gone = (image["nearest"]["picture"] for image in images)
    assert gone is None
    with Image.open(BytesIO(base64.b64decode(near.split(",")[1]))) as shown:
        assert shown.size == (128, 256)
        assert not shown.getexif()
        assert "comment" not in shown.info


def test_training_images_are_shown_from_shards_and_tables(audited, found, tmp_path):
    white = encoded(Image.new("RGB", (64, 32), "white"))
    write_tar(tmp_path / "training" / "a.tar", {"key.png": white, "../up.png": white})
    pq.write_table(pa.table({"image": [white]}), tmp_path / "training" / "b.parquet")
    first = found.prompts[0]
    names = [
        "a.tar/key.png",
        "b.parquet#0",
        "a.tar/../up.png",
        "a.tar/none.png",
        "../a.tar/key.png",
        "b.parquet#x",
        "\0",
    ]
    rows = [{**first.images[0], "whole_path": name, "whole_relative": 0.5, "whole_p": 0.01} for name in names]
    compared = replace(found, prompts=[replace(first, images=rows)])
    (images,) = evidence_of(html(compared, audited, embed_images=True, training=tmp_path / "training"))
    shown = [image["nearest"]["picture"] for image in images]
    assert [picture is not None for picture in shown] == [True, True, True, False, False, False, False]
    with Image.open(BytesIO(base64.b64decode(shown[0].split(",")[1]))) as picture:
        assert (picture.size, picture.getextrema()) == ((64, 32), ((255, 255),) * 3)


def test_a_report_of_training_images_that_are_not_there_is_refused(audited, cryptomnesia):
    code, out, err = cryptomnesia("report", audited.folder, "--training-images", "nosuch")
    assert (code, out) == (2, "")
    assert "no folder or file nosuch" in err


def test_a_run_chooses_no_file_but_its_own_and_training_images(audited, found, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "page.png").write_bytes((tmp_path / "page.eps").read_bytes())
    first = found.prompts[0]
    row = {
        **first.images[0],
        "whole_path": "../private.png",
        "whole_relative": 0.5,
        "whole_p": 0.01,
        "action": "mitigated",
    }
    outside = {**row, "image": str(tmp_path / "private.png"), "instead": "../../private.png"}
    program = {**row, "whole_path": "page.png"}
    foreign = replace(found, prompts=[replace(first, images=[outside, program])])
    (images,) = evidence_of(html(foreign, audited, embed_images=True, training=tmp_path / "training"))
    assert [images[0]["picture"], images[0]["instead"]] == [None, None]
    assert [image["nearest"]["picture"] for image in images] == [None, None]


def test_its_policy_allows_its_own_script_and_style_alone(audited, found):
    page = html(found, audited)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    style = page[page.index("<style>") + 7 : page.index("</style>")]
    for text in (script, style):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_nothing_in_a_prompt_is_markup(audited, found, capsys):
    evil = replace(found, prompts=[replace(found.prompts[0], prompt=EVIL), *found.prompts[1:]])
    page = html(evil, audited)
    assert data_of(page)["prompts"][0]["prompt"] == EVIL
    assert page.count("<script") == 2 + len(found.prompts)
    assert "<img src=x" not in page
    print_outcome(evil)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\ufffd[2J" in printed


def test_json_is_as_its_schema_says(found):
    schema = json.loads((files("cryptomnesia.report") / "static" / "report.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA
    validator = Draft202012Validator(schema)
    validator.validate(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    # with training images, too few to say what is near, and an image that could not be judged
    worst = found.prompts[0].images[0]
    worst |= {
        "whole_path": "a.png",
        "whole_distance": 0.3,
        "whole_relative": math.inf,
        "whole_p": 1.0,
        "score": math.nan,
        "words": [
            {"text": "a", "left_out": math.nan, "gradient": None},
            {"text": "star", "left_out": -2.0, "gradient": 1.0},
        ],
    }
    compared = replace(found, about={**found.about, "index": ["tiles", 5]})
    validator.validate(json.loads(json.dumps(compared.to_json(), allow_nan=False)))
    assert not validator.is_valid(found.to_json() | {"counts": {}})


def test_a_prompt_is_cut_into_pieces_with_the_figures_of_their_words():
    star, red = (
        {"text": "Star", "left_out": 0.5, "gradient": 0.7},
        {"text": "red", "left_out": math.nan, "gradient": None},
    )
    pieces = words_of_prompt("Star, red STAR!", [star, red])
    figures = {"left_out": 0.5, "gradient": 0.7}
    assert pieces == [
        {"text": "Star", **figures},
        {"text": ", "},
        {"text": "red", "left_out": None, "gradient": None},
        {"text": " "},
        {"text": "STAR", **figures},
        {"text": "!"},
    ]
    # images that are not flagged, one word alone, and rows of earlier versions
    assert [words_of_prompt("red", nothing) for nothing in (None, [])] == [None, None]


def test_sarif_holds_a_result_for_every_prompt_with_evidence(found):
    first, second, third = found.prompts
    mixed = replace(
        found,
        prompts=[
            replace(first, prompt="a [b](c) {0} \\", level=Level.confirmed),
            replace(second, level=Level.none),
            replace(third, level=Level.suspected),
        ],
        gate=replace(found.gate, unknown=2),
        settings=found.settings.model_copy(update={"prompts": Path("my prompts.txt")}),
    )
    (run,) = sarif(mixed)["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["confirmed", "corroborated", "suspected"]
    results = run["results"]
    assert [(result["ruleId"], result["level"]) for result in results] == [
        ("confirmed", "error"),
        ("suspected", "note"),
    ]
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in results)
    # brackets would make a link, braces a placeholder
    assert r"Prompt: a \[b\](c) {{0}} \\ (p = " in results[0]["message"]["text"]
    place = results[0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "my%20prompts.txt"
    assert place["logicalLocations"][0]["name"] == mixed.prompts[0].prompt
    assert len({result["partialFingerprints"]["prompt/v1"] for result in results}) == 2
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    assert notification["message"]["text"] == "2 prompts could not be judged in full."
    assert sarif(found)["runs"][0]["invocations"][0]["toolExecutionNotifications"] == []
    # prompts that were given as a list are in no file
    listed = replace(mixed, settings=mixed.settings.model_copy(update={"prompts": None}))
    (place,) = sarif(listed)["runs"][0]["results"][0]["locations"]
    assert place == {"logicalLocations": [{"name": mixed.prompts[0].prompt, "kind": "prompt"}]}


def test_pages_for_people_say_what_they_do_not_know(found):
    assert f"{found.gate.share.value:.1%} of prompts" in model_card(found)
    assert "nothing could be confirmed" in model_card(found)
    assert "no: no training images were compared" in answers(found)


def test_two_runs_are_compared_prompt_by_prompt(found):
    first, second, third = found.prompts
    before = replace(found, prompts=[replace(first, level=Level.none), replace(second, level=Level.confirmed), third])
    after = replace(found, prompts=[replace(first, level=Level.confirmed), replace(second, level=Level.none)])
    changes = compare(before, after, least=Level.corroborated)
    assert changes.new == [(first.prompt, Level.none, Level.confirmed)]
    assert changes.gone == [(second.prompt, Level.confirmed, Level.none)]
    assert (changes.only_before, changes.only_after) == ([third.prompt], [])
    assert (changes.before.hits, changes.after.hits, changes.after.prompts) == (1, 1, 2)
    with pytest.raises(UsageError, match="no prompt in common"):
        compare(before, replace(after, prompts=[replace(first, prompt="another")]), least=Level.corroborated)


def test_prompts_unlike_the_references_are_told_in_every_report(audit_folder, tmp_path, capsys, caplog):
    store = audit(
        **settings(audit_folder, prompts=LONG, batch_size=25, localize=False, mitigate=False), output=tmp_path / "run"
    )
    told = outcome(store)
    length, vocabulary = store.about["unlike"]
    assert length.startswith("the prompts have 14 words at the median and the references 4, so p-values may not hold")
    assert vocabulary.startswith(
        "100% of the words of a prompt are in no reference, and 25% of the words of a reference"
    )
    assert [length, vocabulary] == caplog.messages[:2]
    assert store.about["null"] == 68
    assert told.unlike[:2] == told.to_json()["unlike"][:2] == [length, vocabulary]
    assert length in html(told, store)
    assert f"T{length[1:]}" in model_card(told)
    print_outcome(told)
    assert length in " ".join(capsys.readouterr().out.split())


def test_many_low_p_values_are_a_note(found):
    assert found.unlike == []
    row = found.prompts[0].images[0]
    images = [{**row, "seed": 8, "p_value": 0.9}, {**row, "seed": 7, "p_value": 0.02}]
    rows = [replace(found.prompts[0], prompt=str(number), images=images) for number in range(30)]
    (note,) = replace(found, prompts=rows).unlike
    assert note.startswith("the p-values of 30 prompts are 0.02 at the median")
    # without captions all images are independent
    (note,) = replace(found, prompts=[replace(found.prompts[0], prompt="", images=images[1:] * 20)]).unlike
    assert note.startswith("the p-values of 20 prompts are 0.02 at the median")
    # a run of an earlier version does not say how large its null was
    about = {name: value for name, value in found.about.items() if name not in ("null", "unlike")}
    assert replace(found, prompts=rows, about=about).unlike == []
