import logging
import pickle
import re
import subprocess
import sys
from typing import Annotated

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from cryptomnesia import UsageError
from cryptomnesia.auditing import audited
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.settings import AuditSettings, CallSettings, GuardSettings, Settings

GIVEN = {"model": "bundled", "prompts": "p.txt"}


@pytest.fixture
def seen(monkeypatch):
    """Settings with which the command `audit` is called; it does nothing else."""
    calls = []

    def record(model, prompts, output, *, workers, engine, progress, **values):
        calls.append(AuditSettings(model=model, prompts=prompts, **values))
        raise UsageError("stop here")

    monkeypatch.setattr(audited, "audit", record)
    return calls


def test_import_loads_neither_torch_nor_diffusers():
    code = (
        "import sys, cryptomnesia.settings, cryptomnesia.cli.options\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_flags_are_stronger_than_the_environment_and_the_environment_than_the_file(tmp_path):
    file = tmp_path / "audit.toml"
    file.write_text('model = "a"\nprompts = "p.txt"\nsteps = 10\nseed = 1\nfpr = 0.05\nmitigate = true\n')
    variables = {"CRYPTOMNESIA_STEPS": "20", "CRYPTOMNESIA_SEED": "2", "CRYPTOMNESIA_MITIGATE": "no"}
    found = AuditSettings.resolve({"steps": 30, "seed": None}, file, environment=variables)
    assert (found.model, found.steps, found.seed, found.fpr, found.mitigate) == ("a", 30, 2, 0.05, False)


def test_the_environment_of_the_process_is_read_unless_another_is_given(monkeypatch):
    monkeypatch.setenv("CRYPTOMNESIA_STEPS", "20")
    monkeypatch.setenv("CRYPTOMNESIA_HEIGHT", "")
    assert AuditSettings.resolve(GIVEN).steps == 20
    assert AuditSettings.resolve(GIVEN).height is None
    assert AuditSettings.resolve(GIVEN, environment={}).steps is None
    assert AuditSettings(**GIVEN).steps is None


def test_defaults_are_those_of_the_pipeline_and_its_family():
    found = AuditSettings()
    assert (found.scheduler, found.steps, found.guidance) == ("own", None, None)
    assert (found.detector, found.localizer, found.mitigation) == ("auto", "auto", "auto")
    assert (found.model, found.prompts) == (None, None)


def test_settings_of_a_stored_run_are_read_back_and_go_to_other_processes():
    found = AuditSettings.resolve({**GIVEN, "guidance": 3, "training_images": "t", "fail_on": "confirmed"})
    assert AuditSettings.resolve(found.model_dump(mode="json"), environment={}) == found
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("flags", "text", "variables", "message"),
    [
        (
            {"images_per_prompt": 10**11},
            "",
            {},
            "^got images_per_prompt = 100000000000, expected to be less than or eq",
        ),
        ({"steps": 0}, "", {}, "^got steps = 0, expected to be greater than or equal to 1; give another value$"),
        ({"guidance": float("nan")}, "", {}, "^got guidance = nan, expected to be a finite number; give another"),
        ({"fpr": 1.5}, "", {}, "^got fpr = 1.5, expected to be less than 1; give another value$"),
        ({"stepz": 3}, "", {}, r"^got the unknown setting stepz \(did you mean steps\?\); known are steps, guidance, "),
        ({}, "steps = 0", {}, "^got steps = 0 from .*audit.toml, expected .* or equal to 1; change it there$"),
        ({}, 'fail_on = "never"', {}, "^got fail_on = 'never' from .*'suspected', 'corroborated' or 'confirmed'; "),
        (
            {},
            "stepz = 3\nabc = 1",
            {},
            r"audit.toml has the unknown key abc, stepz \(did you mean steps\?\); known are ",
        ),
        ({}, "[audit]\nsteps = 3", {}, "audit.toml has the unknown key audit; known are steps, guidance, "),
        ({}, "rate = 0.01", {}, "audit.toml has the unknown key rate.*; known are .* fpr, "),
        ({}, "steps = [", {}, "^cannot read the settings .*audit.toml .*; give a TOML file$"),
        (
            {},
            "",
            {"CRYPTOMNESIA_STEPS": "many"},
            "^got steps = 'many' from the environment variable CRYPTOMNESIA_STEPS, expected to be a valid integer.*; "
            "change or unset CRYPTOMNESIA_STEPS$",
        ),
        ({}, "", {"CRYPTOMNESIA_MITIGATE": "maybe"}, "variable CRYPTOMNESIA_MITIGATE, expected to be a valid boolean"),
        ({"seed": -1}, "", {"CRYPTOMNESIA_STEPS": "0"}, "CRYPTOMNESIA_STEPS, .*; got seed = -1, expected"),
        ({"references": "r"}, "", {"CRYPTOMNESIA_CALIBRATION": "c"}, "^got both references and calibration"),
        ({"index": "i", "training_images": "t"}, "", {}, "^got both index and training_images"),
        ({"fail_on": "confirmed"}, "", {}, "^got fail_on = 'confirmed' without training images"),
    ],
)
def test_what_is_not_possible_is_refused_in_one_line(tmp_path, flags, text, variables, message):
    file = tmp_path / "audit.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        AuditSettings.resolve(GIVEN | flags, file, environment=variables)
    assert "\n" not in str(refused.value)


def test_a_settings_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the settings .*none.toml \(no such file\); give a TOML file"):
        AuditSettings.resolve(GIVEN, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "guess"),
    [("CRYPTOMNESIA_STEPZ", r"; did you mean CRYPTOMNESIA_STEPS\?$"), ("CRYPTOMNESIA_XYZZY", "CRYPTOMNESIA_XYZZY$")],
)
def test_an_unknown_variable_is_a_warning_that_names_it(caplog, name, guess):
    found = AuditSettings.resolve(GIVEN, environment={name: "3", "OTHER_STEPS": "3", "CRYPTOMNESIA_SEED": "4"})
    assert found.seed == 4
    [record] = caplog.records
    assert (record.name, record.levelno) == ("cryptomnesia", logging.WARNING)
    assert record.getMessage().startswith(f"ignored the unknown environment variable {name}")
    assert re.search(guess, record.getMessage())


def test_one_file_and_one_environment_serve_several_commands(tmp_path, caplog):
    file = tmp_path / "shared.toml"
    file.write_text('steps = 7\nfail_on = "suspected"\n')
    found = CallSettings.resolve({}, file, environment={"CRYPTOMNESIA_MAX_RATE": "0.5", "CRYPTOMNESIA_WIDTH": "64"})
    assert (found.steps, found.width) == (7, 64)
    assert not caplog.records


def test_every_field_has_a_description():
    assert all(info.description for info in AuditSettings.model_fields.values())


def test_the_help_names_every_scheduler():
    from cryptomnesia.pipelines.loading import SCHEDULERS

    assert all(name in (CallSettings.model_fields["scheduler"].description or "") for name in SCHEDULERS)


def test_the_help_of_audit_names_every_setting_once(cryptomnesia, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = cryptomnesia("audit", "--help")
    first = [
        line.replace("│", " ").split()[0] for line in out.splitlines() if line.startswith("│") and line.strip("│ ")
    ]
    assert code == 0
    for name in AuditSettings.model_fields:
        assert first.count(name if name == "model" else f"--{name.replace('_', '-')}") == 1, name
    assert first.count("--config") == 1
    lines = {line.replace("│", " ").split()[0]: line for line in out.splitlines() if line.startswith("│ --")}
    assert "False-positive rate" in lines["--fpr"]
    assert "[0<x<1] [default: 0.01]" in lines["--fpr"]
    assert "x>=1" in lines["--batch-size"]
    assert "[default: 16]" in lines["--batch-size"]
    assert "float32|float16|bfloat16" in lines["--dtype"]
    assert "--no-mitigate" in lines["--mitigate"]
    assert "[default: mitigate]" in lines["--mitigate"]
    assert "[required]" in lines["--prompts"]
    assert "default" not in lines["--calibration"]


def test_the_command_is_called_with_the_settings_of_all_sources(cryptomnesia, seen, tmp_path, monkeypatch):
    file = tmp_path / "audit.toml"
    file.write_text('prompts = "p.txt"\nsteps = 10\nguidance = 3\nlocalize = false\n')
    monkeypatch.setenv("CRYPTOMNESIA_GUIDANCE", "4")
    monkeypatch.setenv("CRYPTOMNESIA_MODEL", "org/name")
    code, _, err = cryptomnesia("audit", "--config", file, "--steps", 12, "--no-mitigate", "--pixel-fpr", 0.1)
    assert (code, err) == (2, "error: stop here\n")
    [found] = seen
    assert (found.model, found.steps, found.guidance, found.pixel_fpr) == ("org/name", 12, 4.0, 0.1)
    assert (found.localize, found.mitigate) == (False, False)


@pytest.mark.parametrize(("flag", "mitigate"), [("--mitigate", True), ("--no-mitigate", False), (None, False)])
def test_a_boolean_flag_that_is_not_given_leaves_the_word_to_the_environment(
    cryptomnesia, seen, monkeypatch, flag, mitigate
):
    monkeypatch.setenv("CRYPTOMNESIA_MITIGATE", "off")
    cryptomnesia("audit", "bundled", "--prompts", "p.txt", *([] if flag is None else [flag]))
    assert seen[0].mitigate is mitigate


def test_an_unknown_variable_and_a_value_that_is_not_possible_reach_the_user(cryptomnesia, monkeypatch, caplog):
    monkeypatch.setenv("CRYPTOMNESIA_STEPZ", "3")
    monkeypatch.setenv("CRYPTOMNESIA_FPR", "2")
    code, _, err = cryptomnesia("audit", "bundled", "--prompts", "p.txt")
    assert code == 2
    assert "CRYPTOMNESIA_STEPZ" in caplog.text
    assert "error: got fpr = '2' from the environment variable CRYPTOMNESIA_FPR, expected to be less than 1" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got no model; give the argument model, the key model in a --config file, or the environment variable"),
        (("bundled",), "got no prompts; give --prompts, the key prompts in a --config file, or the environment"),
    ],
)
def test_what_is_needed_and_not_given_is_named(cryptomnesia, arguments, message):
    code, _, err = cryptomnesia("audit", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


class PaintSettings(Settings):
    """Settings of a command of a test."""

    colors: list[str] = Field(default_factory=lambda: ["white"])
    """Names of colours; may be given more than once."""
    layers: int = 2
    """How many layers [of paint]."""


def paint(called):
    app = typer.Typer()

    @app.command()
    @settings_flags()
    def command(settings: PaintSettings, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
        called.append((settings, loud))

    return app


def test_any_settings_class_gives_a_command_its_flags(monkeypatch):
    called = []
    assert CliRunner().invoke(paint(called), ["--colors", "red", "--colors", "blue", "--loud"]).exit_code == 0
    assert called == [(PaintSettings(colors=["red", "blue"]), True)]
    monkeypatch.setenv("CRYPTOMNESIA_COLORS", '["green"]')
    assert CliRunner().invoke(paint(called), ["--layers", "3"]).exit_code == 0
    assert called[1] == (PaintSettings(colors=["green"], layers=3), False)
    shown = CliRunner().invoke(paint(called), ["--help"], env={"COLUMNS": "200"}).output
    assert "[of paint]. [default: 2]" in shown
    assert "more than once. [default: white]" in shown


def test_a_list_in_the_environment_that_is_no_json_is_refused():
    with pytest.raises(UsageError, match=r"cannot read the environment \(.*colors.*\); give lists as JSON"):
        PaintSettings.resolve({}, environment={"CRYPTOMNESIA_COLORS": "red"})


def test_a_command_that_does_not_fit_its_settings_is_refused_when_it_is_defined():
    def without(steps: int = 3) -> None: ...

    def fine(settings: CallSettings) -> None: ...

    def twice(settings: CallSettings, steps: int = 3) -> None: ...

    with pytest.raises(TypeError, match="without needs one parameter that is a settings class, got 0"):
        settings_flags()(without)
    with pytest.raises(TypeError, match=r"twice has the parameters \{'steps'\}, which its settings have, too"):
        settings_flags()(twice)
    with pytest.raises(TypeError, match=r"fine names \{'prompt'\}, which are no fields of CallSettings"):
        settings_flags(needed=["prompt"])(fine)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('prompts = ""', "has an empty prompts; give a path, or leave the key out"),
        ('calibration = [""]', "has an empty calibration; give a path, or leave the key out"),
    ],
)
def test_an_empty_path_in_a_file_is_refused(tmp_path, text, expected):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UsageError, match=expected):
        GuardSettings.resolve({}, tmp_path / "a.toml", environment={})


def test_a_folder_is_no_settings_file(tmp_path):
    with pytest.raises(UsageError, match=r"\(a folder\); give a TOML file"):
        GuardSettings.resolve({}, tmp_path, environment={})


def test_dates_among_the_options_of_a_file_are_texts(tmp_path):
    (tmp_path / "a.toml").write_text("option = {eta = 1979-05-27, clip_skip = 1}")
    found = GuardSettings.resolve({}, tmp_path / "a.toml", environment={})
    assert found.option == ['eta="1979-05-27"', "clip_skip=1"]
