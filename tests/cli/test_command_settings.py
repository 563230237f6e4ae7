import pytest

from cryptomnesia.settings import (
    AuditSettings,
    BuildSettings,
    CalibrateSettings,
    DemoSettings,
    DetectSettings,
    GuardSettings,
    LocalizeSettings,
    MatchSettings,
)

COMMANDS = {
    "detect": DetectSettings,
    "localize": LocalizeSettings,
    "guard": GuardSettings,
    "calibrate": CalibrateSettings,
    "match": MatchSettings,
    "index build": BuildSettings,
    "demo": DemoSettings,
}
POSITIONAL = ("model", "images")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_names_every_setting_once_and_describes_it(cryptomnesia, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = cryptomnesia(*command.split(), "--help")
    assert code == 0
    first = [
        line.replace("│", " ").split()[0] for line in out.splitlines() if line.startswith("│") and line.strip("│ ")
    ]
    for name, info in COMMANDS[command].model_fields.items():
        flag = name if name in POSITIONAL else f"--{name.replace('_', '-')}"
        assert [word.removesuffix("...") for word in first].count(flag) == 1, name
        assert info.description
        assert " ".join(info.description.split()) in out
    assert first.count("--config") == 1


def test_maps_and_mitigation_are_off_in_detect_and_on_in_demo_and_audit():
    assert (DetectSettings().localize, DetectSettings().mitigate) == (False, False)
    assert (DemoSettings().localize, DemoSettings().mitigate) == (True, True)
    assert (AuditSettings().localize, AuditSettings().mitigate) == (True, True)


def test_several_names_are_a_text_or_a_list_in_environment_and_file(tmp_path):
    read = LocalizeSettings.resolve
    for text, expected in (
        ("collapse", ["collapse"]),
        ('["collapse", "curvature"]', ["collapse", "curvature"]),
        ("a red circle, and a star", ["a red circle, and a star"]),
        ('["half', ['["half']),
        ("3", ["3"]),
    ):
        assert read({}, environment={"CRYPTOMNESIA_LOCALIZER": text}).localizer == expected
    file = tmp_path / "settings.toml"
    file.write_text('localizer = ["collapse", "curvature"]\nprompt = "a red circle"\n')
    found = read({}, file, environment={})
    assert (found.localizer, found.prompt) == (["collapse", "curvature"], ["a red circle"])
    assert read({"localizer": ["guidance-map"]}, file, environment={}).localizer == ["guidance-map"]
    assert MatchSettings.resolve({}, environment={"CRYPTOMNESIA_IMAGES": "a.png"}).images[0].name == "a.png"


def test_one_environment_serves_detect_and_localize():
    environment = {"CRYPTOMNESIA_LOCALIZER": "collapse", "CRYPTOMNESIA_DETECTOR": "drift"}
    assert DetectSettings.resolve({}, environment=environment).localizer == "collapse"
    assert LocalizeSettings.resolve({}, environment=environment).localizer == ["collapse"]
    assert CalibrateSettings.resolve({}, environment=environment).detector == ["drift"]
