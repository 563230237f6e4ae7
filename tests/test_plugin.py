"""The example package is installed into a folder of its own, and used by the names of its methods."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cryptomnesia
from cryptomnesia.testing import check_detector, run_checks

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugin"
SESSION = Path(__file__).with_name("plugin_session.py")
SOURCE = Path(cryptomnesia.__file__).parent.parent
NAMES = {"turn", "early-answer", "fade", "agreement", "reorder"}

pytestmark = pytest.mark.filterwarnings("default")


def python(*arguments, path=(), **environment):
    """Run Python in a process of its own that finds this package and what lies in `path`."""
    paths = os.pathsep.join(map(str, (*path, SOURCE)))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the package was installed into, from its sources and without a network."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    python("-m", "pip", "install", *options, "--target", folder, EXAMPLE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def session(installed, folder):
    """What came of a session with the package; see `plugin_session.py`."""
    python(SESSION, folder, path=[installed])
    return json.loads((folder / "result.json").read_text())


def test_its_methods_are_listed_and_ready(session):
    assert {name for _, name, _, _ in session["methods"]} == NAMES
    assert {(version, state) for _, _, version, state in session["methods"]} == {("0.1.0", "ready")}


def test_a_calibration_without_its_norms_is_refused_with_what_a_new_one_costs(session):
    refused = session["refused"]
    assert refused.keys() == {"turn", "early-answer", "agreement"}
    for name, message in refused.items():
        assert f"the calibration has not recorded {name}, which {name} reads" in message
        assert f"cryptomnesia calibrate --detector {name}" in message
        assert "102 images of 3 evaluations" in message
    assert session["evaluations of what is refused"] == 0


def test_a_detector_that_reads_stored_norms_works_on_an_older_calibration(session):
    assert [found["detector"] for found in session["stored norms"]] == ["fade"] * 2
    assert all(0 < found["p_value"] <= 1 for found in session["stored norms"])


def test_a_calibration_records_what_its_detectors_ask_for(session):
    recorded = session["recorded"]
    assert "turn" in recorded["norms"]
    assert set(recorded["signals"]) == {"early-answer", "agreement"}
    assert recorded["maps"] == ["agreement"]


@pytest.mark.parametrize("name", ["fade", "turn", "early-answer", "agreement"])
def test_images_are_detected_mapped_and_made_again(session, name):
    found = session[f"detect by {name}"]
    assert [finding["detector"] for finding in found] == [name] * 12
    flagged = [finding for finding in found if finding["flagged"]]
    for finding in found:
        assert finding["flagged"] == (finding["p_value"] <= 0.5)
        assert finding["maps"] == ({"agreement": [8, 8]} if finding["flagged"] else {})
        assert finding["action"] in (("mitigated", "withheld") if finding["flagged"] else ("none",))
        assert finding["instead"] == (finding["action"] == "mitigated")
    assert flagged


def test_other_pictures_are_shown_for_some_of_the_flagged_ones(session):
    detectors = NAMES - {"reorder"}
    actions = {finding["action"] for name in detectors for finding in session[f"detect by {name}"]}
    assert actions == {"none", "mitigated", "withheld"}


def test_pictures_are_mapped_with_masks(session):
    assert len(session["localize"]) == 2
    for located in session["localize"]:
        assert (located["shape"], located["mask"]) == ([8, 8], [8, 8])
        assert located["lowest"] >= 0


def test_a_guard_uses_its_detector_and_its_mitigation(session):
    assert any(one["flagged"] for one in session["guard"])
    for one in session["guard"]:
        assert one["action"] in (("mitigated", "withheld") if one["flagged"] else ("none",))
        assert one["black"] == (one["action"] == "withheld")
        if one["flagged"]:
            assert one["reason"].startswith("turn ")


def test_an_audit_uses_all_of_them_and_is_reported(session):
    audited = session["audit"]
    assert audited["methods"] == {"detector": "turn", "localizer": "agreement", "mitigation": "reorder"}
    assert (audited["detector"], audited["images"], audited["missing"]) == ("turn", 12, {})
    assert "turn" in audited["card"]
    assert audited["page"] > 1000


def test_a_stored_run_is_judged_anew_by_what_it_stored(session):
    assert session["rescored by fade"]["detector"] == "fade"
    assert "early-answer" in session["rescored by early-answer"]
    assert "evaluations" in session["rescored by early-answer"]


def test_a_run_is_reported_where_the_package_is_not_installed(session, folder):
    python(SESSION, folder, "later")
    found = json.loads((folder / "later.json").read_text())
    assert found["missing"].keys() == {"detector turn", "localizer agreement", "mitigation reorder"}
    assert (found["detector"], found["images"], found["levels"]) == ("turn", 12, session["audit"]["levels"])
    assert "turn" in found["card"]
    assert found["page"] > 1000


def test_a_variable_leaves_the_package_out(installed):
    code = "from cryptomnesia import methods; print(*(entry.name for entry in methods()))"
    assert set(python("-c", code, path=[installed]).split()) >= NAMES
    assert not set(python("-c", code, path=[installed], CRYPTOMNESIA_PLUGINS="off").split()) & NAMES


def test_its_own_tests_pass(installed, folder):
    told = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", folder, EXAMPLE / "tests",
        path=[installed],
    )  # fmt: skip
    assert re.search(r"^\d+ passed", told, re.MULTILINE), told


def test_every_listing_of_its_tutorial_is_its_source():
    tutorial = (EXAMPLE / "README.md").read_text()
    listings = re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", tutorial, re.MULTILINE | re.DOTALL)
    assert {path for path, _ in listings} == {
        "pyproject.toml",
        "tests/test_methods.py",
        *(f"src/cryptomnesia_example/{name}.py" for name in ("fade", "turn", "early_answer", "agreement", "reorder")),
    }
    for path, listing in listings:
        assert listing == (EXAMPLE / path).read_text(), f"the listing of {path} is another"


def test_the_first_detector_of_the_tutorial_passes_all_checks():
    tutorial = (EXAMPLE / "README.md").read_text()
    (code,) = re.findall(
        r"^```python\n# src/hello_detector/__init__.py\n(.*?)^```$", tutorial, re.MULTILINE | re.DOTALL
    )
    names = {}
    exec(code, names)
    assert set(run_checks(check_detector(names["Hello"])).values()) == {"passed"}
