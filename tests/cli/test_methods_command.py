import json
from importlib.metadata import EntryPoint

import pytest

from cryptomnesia import registry
from cryptomnesia.registry import UsageError, entries

PLUGIN = '''
from dataclasses import dataclass

from cryptomnesia import Detector


@dataclass(frozen=True)
class Moon(Detector):
    """A detector of another package."""

    phase: float = 0.5

    name = "moon"
    summary = "The phase of the moon \\x1b[2J."
    source = "an almanac"
    use_when = "It is dark."
    avoid_when = "It is bright."

    def running(self, runs, references):
        return runs.norms["z"] * self.phase


@dataclass(frozen=True)
class Costly(Moon):
    name = "costly"

    def cost(self, setup):
        raise RuntimeError("no idea")
'''


class Distribution:
    """The metadata of an installed package."""

    def __init__(self, name, version):
        self.name, self.version = name, version


def point(name, value, group, package="almanac"):
    made = EntryPoint(name, value, group)
    vars(made)["dist"] = Distribution(package, "3.1")
    return made


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    """Another package with a good method, two broken ones, and a name that two packages register."""
    (tmp_path / "almanac.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    found = registry.entry_points
    more = {
        "cryptomnesia.detectors": [
            point("moon", "almanac:Moon", "cryptomnesia.detectors"),
            point("costly", "almanac:Costly", "cryptomnesia.detectors"),
            point("broken", "no_such_module:Thing", "cryptomnesia.detectors"),
        ],
        "cryptomnesia.localizers": [point("twice", f"almanac:{n}", "cryptomnesia.localizers", n) for n in ("a", "b")],
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: [*found(group=group), *more.get(group, [])])
    registry._entries.cache_clear()
    yield
    registry._entries.cache_clear()


def listed(cryptomnesia, *arguments):
    code, out, err = cryptomnesia("methods", "--json", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_every_method_is_listed_with_package_state_and_cost(cryptomnesia):
    code, out, err = cryptomnesia("methods")
    assert (code, err) == (0, "")
    for kind in registry.GROUPS:
        for name in entries(kind):
            assert any(kind in line and name in line and "ready" in line for line in out.splitlines()), name
    rows = {(row["kind"], row["name"]): row for row in listed(cryptomnesia)}
    assert rows["localizer", "collapse-checkpoint"]["requires"] == ["checkpoint"]
    assert rows["detector", "drift"]["cost"] == 0
    assert rows["localizer", "collapse"]["cost"] == 8
    assert rows["detector", "drift"]["package"] == "cryptomnesia"
    assert all(row["state"] == "ready" and row["summary"] for row in rows.values())


def test_the_page_of_a_method_is_what_its_class_declares(cryptomnesia):
    from cryptomnesia import Drift

    code, out, err = cryptomnesia("methods", "drift")
    assert (code, err) == (0, "")
    assert out.startswith(f"# drift (detector)\n\n{Drift.summary}\n\n- Package: cryptomnesia ")
    assert "- Source: this library\n- Requires: nothing\n- Cost: 0 denoiser evaluations" in out
    assert (
        f"## Use when\n\n{Drift.use_when}\n\n## Avoid when\n\n{Drift.avoid_when}\n\n## Settings\n\n- `less`: 3.0\n"
        in out
    )


def test_a_name_of_several_kinds_has_several_pages(cryptomnesia):
    out = cryptomnesia("methods", "bright-ending")[1]
    assert [line for line in out.splitlines() if line.startswith("# ")] == [
        "# bright-ending (detector)",
        "# bright-ending (localizer)",
    ]
    out = cryptomnesia("methods", "collapse")[1]
    assert "- Detector: the mean of the map is one; use it by `--detector collapse`" in out
    assert "Detector:" not in cryptomnesia("methods", "collapse-checkpoint")[1]
    assert "# FluxPipeline (family)" in cryptomnesia("methods", "FluxPipeline")[1]


def test_an_unknown_method_is_refused_with_a_guess(cryptomnesia):
    code, out, err = cryptomnesia("methods", "drft")
    assert (code, out) == (2, "")
    assert err.startswith("error: got the unknown method 'drft' (did you mean drift?); known are anisotropy, ")
    assert err.count("\n") == 1


def test_a_broken_plug_in_is_listed_with_its_error_and_breaks_nothing(cryptomnesia, plugins):
    rows = {row["name"]: row for row in listed(cryptomnesia)}
    assert (rows["moon"]["package"], rows["moon"]["version"], rows["moon"]["state"]) == ("almanac", "3.1", "ready")
    assert rows["broken"]["state"] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert rows["costly"]["state"] == "RuntimeError: no idea"
    assert rows["twice"]["state"].startswith("the localizer 'twice' is registered by more than one package: a, b;")
    assert rows["drift"]["state"] == "ready"
    code, out, err = cryptomnesia("methods")
    assert (code, err) == (0, "")
    assert "no_such_module" in out
    assert "\x1b[2J" not in out
    code, out, err = cryptomnesia("methods", "broken")
    assert (code, err) == (0, "")
    state = "ModuleNotFoundError: No module named 'no_such_module'"
    assert out == f"# broken (detector)\n\n- Package: almanac 3.1\n- State: {state}\n"
    code, out, err = cryptomnesia("methods", "moon")
    assert "- `phase`: 0.5" in out
    assert "It is dark." in out


def test_a_variable_leaves_out_the_methods_of_other_packages(cryptomnesia, plugins, monkeypatch):
    monkeypatch.setenv("CRYPTOMNESIA_PLUGINS", "off")
    assert {row["package"] for row in listed(cryptomnesia)} == {"cryptomnesia"}
    code, _, err = cryptomnesia("methods", "moon")
    assert code == 2
    assert "got the unknown method 'moon'" in err
    for value in ("on", ""):
        monkeypatch.setenv("CRYPTOMNESIA_PLUGINS", value)
        assert "moon" in entries("detector")
    monkeypatch.setenv("CRYPTOMNESIA_PLUGINS", "perhaps")
    with pytest.raises(UsageError, match="got CRYPTOMNESIA_PLUGINS = 'perhaps'; give on, or off"):
        entries("detector")
    assert cryptomnesia("methods")[:2] == (2, "")
