"""The commands `canaries make`, `canaries measure` and `canaries remove`: exit codes, and what they print and write."""

import json

import pytest

from cryptomnesia.finetuning.canaries import asking
from cryptomnesia.finetuning.canaries.exposure import Dose, Exposed
from cryptomnesia.finetuning.canaries.result import DoseResponse
from cryptomnesia.settings import MakeCanariesSettings, MeasureCanariesSettings
from looked_for import pictures

MAKE = ("--repetitions", "1,3", "--each", 2, "--size", 16, "--reserve", 19)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A training set of 80 pictures in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for number, one in enumerate(pictures(0, 80)):
        one.save(tmp_path / "data" / f"{number}.png")
    return tmp_path / "data"


def test_canaries_are_made_measured_and_taken_out(cryptomnesia, data, model, tmp_path):
    code, out, err = cryptomnesia("canaries", "make", "data", *MAKE)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "data: 4 canaries in 8 picture files",
        "9% of the pictures of an epoch (8 of 88)",
        "data/canaries.json: keep it, and measure with `cryptomnesia canaries measure MODEL data/canaries.json`",
    ]
    code, out, err = cryptomnesia("canaries", "remove", "data")
    assert (code, out, err) == (0, "data: took out 4 canaries\n", "")
    assert len(list(data.iterdir())) == 81
    measure = ("canaries", "measure", model / "tiny", "data", "--steps", 2)
    code, out, err = cryptomnesia(*measure, "-o", "out")
    assert code in (0, 1)
    assert err == ""
    assert out.startswith("19 pictures that were never shown, exposure at most 4.3 bits")
    assert out.splitlines()[-1] == "out/exposure.svg: the curve over the repetitions"
    again, out, err = cryptomnesia(*measure, "--json")
    assert (again, err) == (code, "")
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "out" / "exposure.json").read_text())
    assert [dose["repetitions"] for dose in printed["doses"]] == [1, 3]


@pytest.mark.parametrize(
    ("p_values", "code", "words"),
    [
        ((0.5, 0.01), 1, "stands out"),
        ((0.5, 0.5), 0, "Up to 3 repetitions canaries are not told"),
        ((0.5, float("nan")), 3, "No canary of 3 repetitions could be measured."),
    ],
)
def test_exit_codes_say_what_was_found(cryptomnesia, monkeypatch, p_values, code, words):
    doses = [
        Dose(number, [Exposed("a", number, 1.0, p, 2.0)] if p == p else [], p, p <= 0.05, 5.0, 0.05)
        for number, p in zip((1, 3), p_values, strict=True)
    ]
    monkeypatch.setattr(asking, "measure_canaries", lambda *_, **__: DoseResponse({}, doses, 31, 0.05))
    found, out, _ = cryptomnesia("canaries", "measure", "bundled", "canaries.json")
    assert found == code
    assert words in out
    assert cryptomnesia("canaries", "measure", "bundled", "canaries.json", "--json")[0] == code


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("make",), "error: got no data; give the argument data"),
        (("make", "nosuch"), "error: no folder nosuch; give the folder of the training set"),
        (("make", "data", "--repetitions", "1;2"), "error: got the repetitions '1;2'; give whole numbers from 1 to"),
        (("make", "data", "--each", "0"), "Invalid value for '--each'"),
        (("make", "data", "-o", "data/0.png"), "error: cannot write to data/0.png"),
        (("measure", "bundled", "data"), "error: no canaries data/canaries.json; add some with"),
        (("measure", "bundled"), "error: got no manifest; give the argument manifest"),
        (("remove", "data"), "error: no canaries data/canaries.json"),
        (("remove", "nosuch"), "error: no folder nosuch; give the one that has canaries.json"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2(cryptomnesia, data, given, message):
    code, out, err = cryptomnesia("canaries", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert len(list(data.iterdir())) == 80


@pytest.mark.parametrize(
    ("command", "settings", "arguments"),
    [
        ("make", MakeCanariesSettings, {"data"}),
        ("measure", MeasureCanariesSettings, {"model", "manifest"}),
    ],
)
def test_the_help_names_every_setting(cryptomnesia, monkeypatch, command, settings, arguments):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = cryptomnesia("canaries", command, "--help")
    assert code == 0
    for name, field in settings.model_fields.items():
        assert (name if name in arguments else f"--{name.replace('_', '-')}") in out, name
        assert field.description
