import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from cryptomnesia import Located, Word
from cryptomnesia.report.rows import Compared, Judged, regions, what_was_done
from cryptomnesia.verdicts import Verdict

FLAGGED = Verdict(4, "a caption", "drift", 0.01, 3.0, 0.004, True, 2, "drift 3 has p = 0.004 ≤ 0.01")


def test_import_loads_nothing_heavy():
    code = (
        "import sys, cryptomnesia.report.rows, cryptomnesia.report.console, cryptomnesia.report.bench_tables\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_json_of_an_image_is_its_verdict():
    verdict = replace(FLAGGED, score=float("nan"), retried=(0.5, float("nan")), dropped=("star",))
    row = Judged(7, verdict, Path("out/a.png")).to_json()
    assert row.keys() == {"seed", "file", "answer", "truncated", "words"} | {
        field.name for field in fields(Verdict)
    } - {"image"}
    assert (row["seed"], row["file"], row["answer"]) == (7, "out/a.png", "memorized?")
    assert (row["score"], row["p_value"], row["retried"], row["dropped"]) == (None, 0.004, [0.5, None], ["star"])
    assert row["words"] is None
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    compared = Judged(7, verdict, None, words=(Word("star", float("nan"), None),)).to_json()
    assert compared["words"] == [{"text": "star", "left_out": None, "gradient": None}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"action": "mitigated", "dropped": ("star", "red")}, "without star, red"),
        ({"action": "withheld", "dropped": ("star",)}, "withheld, also without star"),
        ({"action": "withheld"}, "withheld"),
        ({"action": "mitigated", "severity": "mild"}, "corrected, mild"),
        ({"action": "regenerated", "retried": (0.5,)}, "regenerated"),
    ],
)
def test_what_was_done_is_said_in_a_few_words(changes, words):
    assert what_was_done(replace(FLAGGED, **changes)) == words


def test_a_map_without_mask_and_error_leaves_them_out():
    heat = torch.full((2, 2), 0.5)
    errors = {"second": torch.full((2, 2), 0.1)}
    located = Located("a caption", 3, torch.zeros(3, 4, 4), {"first": heat, "second": heat * torch.nan}, errors)
    first, second = regions(located, Path("a.png"), Path("a.safetensors"))
    assert (first.localizer, first.mean, first.error, first.fraction, first.p_value) == ("first", 0.5, None, None, None)
    assert (second.mean, second.error) == (None, pytest.approx(0.1))
    assert (first.panel, first.maps, first.seed) == ("a.png", "a.safetensors", 3)


def test_an_infinite_distance_is_null():
    row = Compared("a.png", "b.png", float("inf"), float("inf"), 1.0, False, "", "")
    assert row.to_json()["distance"] is None
    assert row.to_json()["p_value"] == 1.0
