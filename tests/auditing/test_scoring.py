import logging
import shutil
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from cryptomnesia import Calibration, Drift, Stability, UsageError, audit, calibrate, registry
from cryptomnesia.auditing.comparison import compare
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store
from cryptomnesia.report.html import html
from cryptomnesia.report.markdown import answers, model_card
from cryptomnesia.report.sarif import sarif
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion
from cryptomnesia.tracing.columns import trajectory_of
from foreign_methods import Acme, AcmeMap, AcmeRemedy
from tiny_audit import settings

EVERYTHING = {
    "detector": {
        "acme": "foreign_methods:Acme",
        "acme-loudest": "foreign_methods:Loudest",
        "acme-fails": "foreign_methods:Fails",
        "acme-broken": "no_such_module:Broken",
    },
    "localizer": {"acme-map": "foreign_methods:AcmeMap"},
    "mitigation": {"acme-remedy": "foreign_methods:AcmeRemedy"},
}


@pytest.fixture
def install(monkeypatch):
    """Registers methods by entry points, as the installation of a package does; without arguments it removes them."""
    real = registry.entry_points

    def points(installed, group):
        kind = next(kind for kind, name in registry.GROUPS.items() if name == group)
        found = [EntryPoint(name, value, group) for name, value in installed.get(kind, {}).items()]
        return [*real(group=group), *found]

    def install(**installed):
        monkeypatch.setattr(registry, "entry_points", lambda group: points(installed, group))
        registry._entries.cache_clear()

    yield install
    monkeypatch.undo()
    registry._entries.cache_clear()


def copied(store, folder):
    return Store(shutil.copytree(store.folder, folder))


def test_scores_can_be_made_anew_from_what_was_stored(audited, tmp_path):
    store = copied(audited, tmp_path / "copy")
    score(store, detector="stability", fpr=0.3)
    found = outcome(store)
    assert (found.detector, found.made_by, found.fpr) == ("stability", "stability()", 0.3)
    rows = store.rows("scores")
    assert [row["p_value"] <= 0.3 for row in rows] == [row["flagged"] for row in rows]
    assert [row["flagged"] for row in rows] == [row["level"] != "none" for row in rows]
    assert [row["score"] for row in rows] == [row["score:stability"] for row in rows]
    assert all(row["reason"].startswith("stability ") for row in rows)
    with pytest.raises(UsageError, match="unknown detector 'tarot'"):
        score(store, detector="tarot")


def test_a_false_discovery_rate_decides_from_all_prompts_together(audited, tmp_path):
    """Three prompts with two images each, of which only some can be found; the rate of an image follows."""
    store = copied(audited, tmp_path / "copy")
    p_values = {}
    for row in store.rows("scores"):
        p_values.setdefault(row["prompt"], []).append(row["p_value"])
    smallest = sorted(min(1.0, 2 * min(found)) for found in p_values.values())
    assert len(smallest) == 3
    for fdr in (0.02, 0.3, 0.99):
        score(store, fpr=0.5, fdr=fdr)
        found = outcome(store)
        passing = [k for k, p in enumerate(smallest, start=1) if p <= fdr * k / 3]
        assert found.fdr == found.to_json()["fdr"] == fdr
        assert found.fpr == pytest.approx(min(fdr * max(passing, default=1) / 3, 1.0) / 2)
        suspected = [judged for judged in found.prompts if judged.level >= Level.suspected]
        assert len(suspected) == max(passing, default=0)
        rows = store.rows("scores")
        assert [row["flagged"] for row in rows] == [row["p_value"] <= found.fpr for row in rows]
        assert f"at most {100 * fdr:g}% should be ordinary" in html(found, store)
    # without one the run is judged as it was
    score(store)
    assert (outcome(store).fdr, outcome(store).fpr) == (None, 0.5)


def test_the_pictures_of_a_run_are_its_own(audited, tmp_path):
    store = copied(audited, tmp_path / "copy")
    rows = audited.rows("images")
    store.write("images", 0, [{**row, "image": str(audited.folder / row["image"])} for row in rows[:4]])
    with pytest.raises(UsageError, match="which is not its own"):
        score(store)


def test_a_detector_that_observes_the_same_as_the_map_is_refused(audited, tmp_path):
    store = copied(audited, tmp_path / "copy")
    for part in ("methods", "observes"):
        store.about[part]["localizer"] = {"methods": "score-difference", "observes": "the branches at the end"}[part]
    from cryptomnesia.localizers import ScoreDifference

    store.about["observes"]["localizer"] = ScoreDifference().observes
    with pytest.raises(UsageError, match="guidance-last says the same as the map score-difference"):
        score(store, detector="guidance-last")


@pytest.mark.parametrize(
    ("fpr", "message"), [(0, "got the false-positive rate 0; give one between"), (1, "rate 1; give")]
)
def test_a_rate_that_cannot_be_is_refused_and_not_taken_for_another(audited, tmp_path, fpr, message):
    store = copied(audited, tmp_path / "copy")
    before = str(store.rows("scores"))
    for detector in (None, "stability"):
        with pytest.raises(UsageError, match=message):
            score(store, detector=detector, fpr=fpr)
    with pytest.raises(UsageError, match=r"a false-positive rate of 0\.001 needs at least 999 null references"):
        score(store, fpr=0.001)
    assert str(store.rows("scores")) == before


def test_a_detector_with_other_settings_is_another_detector(audited, tmp_path):
    store = copied(audited, tmp_path / "copy")
    before = str(store.rows("scores"))
    score(store, detector=Drift(less=1.0))
    assert outcome(store).made_by == "drift(less=1.0)"
    rows = store.rows("scores")
    assert any(row["score"] != row["score:drift"] for row in rows)
    # the page would draw the scores of another detector
    assert (
        "No charts: the detector drift of this installation is drift(less=3.0), that of the run was drift(less=1.0)"
        in (html(outcome(store), store))
    )
    score(store, detector=Drift(less=3.0))
    assert str(store.rows("scores")) == before
    score(store, detector="drift")
    assert str(store.rows("scores")) == before


def test_levels_follow_from_the_signals(audited, tmp_path):
    store = copied(audited, tmp_path / "levels")
    rows = audited.rows("images")
    known = [
        ((None, False, False), Level.suspected),
        ((0.001, False, False), Level.corroborated),
        ((0.9, True, False), Level.confirmed),
        ((None, False, True), Level.confirmed),
    ]
    for row, ((mean_p, whole, region), _) in zip(rows, known, strict=False):
        row |= {"mean_p": mean_p, "mask": None}
        row |= {"matched_whole": whole, "matched_region": region}
    store.write("images", 0, rows)
    store.path("images", 1).unlink()
    score(store, fpr=0.99)
    assert [Level[row["level"]] for row in store.rows("scores")][: len(known)] == [level for _, level in known]


def test_a_mean_that_a_run_did_not_take_is_not_made_up(audit_folder, tmp_path):
    fitted = calibrate(
        stable_diffusion(), PROMPTS, localizers=["collapse"], detectors=["curvature"], batch_size=34, **CALL
    )
    fitted.save(tmp_path / "c.safetensors")
    given = {"calibration": tmp_path / "c.safetensors", "references": None}
    store = audit(**settings(audit_folder, **given), output=tmp_path / "run")
    assert "score:curvature" not in store.rows("scores")[0]
    message = (
        "the run stored no curvature, which curvature reads; audit again with --detector curvature: 3 images × 3 "
        "evaluations, and what the detector itself evaluates"
    )
    with pytest.raises(UsageError, match=message):
        score(store, detector="curvature")


def test_methods_of_another_package_are_used_stored_and_reported(install, audit_folder, tmp_path, caplog):
    install(**EVERYTHING)
    names = {"detector": "acme", "localizer": "acme-map", "mitigation": "acme-remedy"}
    with caplog.at_level(logging.INFO, "cryptomnesia"):
        store = audit(**settings(audit_folder, images_per_prompt=2, **names), output=tmp_path / "run")
    assert store.about["methods"] == names
    assert store.about["made_by"] == {
        role: method.describe() for role, method in zip(names, (Acme(), AcmeMap(), AcmeRemedy()), strict=True)
    }
    rows, scores = store.rows("images"), store.rows("scores")
    assert len(rows[0]["norm:acme.contrast"]) == 3
    assert [len(line) for line in rows[0]["signal:acme.patch"]] == [3, 3]
    calibration = Calibration.load(store.folder / "calibration.safetensors")
    assert calibration.runs.timesteps == (667.0, 334.0, 1.0)
    assert calibration.runs.signals["acme.patch"].shape == (102, 2, 3)
    runs = trajectory_of(rows)
    assert runs.signals["acme.patch"].shape == (6, 2, 3)
    expected = Acme().running(runs, calibration.references)[:, -1].tolist()
    assert [row["score"] for row in scores] == expected
    for row in rows:
        assert (row["action"], row["map"] is not None) == (("withheld", True) if row["flagged"] else ("none", False))
    assert any("acme said so" in row["reason"] for row in scores)
    # the scores of all detectors that read what is stored; the others are left out without a word
    assert {key for key in scores[0] if key.startswith("score:")} == {
        f"score:{name}"
        for name in (
            *(
                "acme",
                "acme-loudest",
                "combined",
                "drift",
                "early-detail",
                "guidance-first",
                "guidance-last",
                "guidance-mean",
            ),
            *("information", "stability", "stability-first", "stability-or-drift"),
        )
    }
    # nobody asked for the broken ones
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    notes = [record.getMessage() for record in caplog.records if "acme-" in record.getMessage()]
    assert len(notes) == 2
    assert notes[0].startswith("no scores of the detector acme-broken: the detector 'acme-broken' of the package ")
    assert "No module named 'no_such_module'" in notes[0]
    assert notes[1].startswith("no scores of the detector acme-fails: it fails (KeyError: 'no such norm')")
    assert outcome(store).missing == {}
    score(store, detector="acme-loudest", fpr=0.3)
    assert outcome(store).detector == "acme-loudest"
    with pytest.raises(registry.PluginError, match="'acme-broken' of the package"):
        score(store, detector="acme-broken")


def test_a_package_that_ends_python_when_it_is_imported_does_not_end_an_audit(
    install, audited, cryptomnesia, tmp_path, monkeypatch
):
    (tmp_path / "quitter.py").write_text("import sys\nsys.exit(7)\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(detector={"quitter": "quitter:Quitter"})
    store = copied(audited, tmp_path / "copy")
    score(store)
    assert str(store.rows("scores")) == str(audited.rows("scores"))
    code, out, err = cryptomnesia("rescore", store.folder)
    assert (code, err) == (0, "")
    code, out, err = cryptomnesia("methods", "quitter")
    assert (code, err) == (0, "")
    assert "- State: SystemExit: 7\n" in out


def test_a_run_by_methods_that_are_not_installed_any_more_is_shown_by_their_names(
    install, audit_folder, cryptomnesia, tmp_path
):
    install(**EVERYTHING)
    names = {"detector": "acme", "localizer": "acme-map", "mitigation": "acme-remedy"}
    store = audit(**settings(audit_folder, images_per_prompt=2, **names), output=tmp_path / "run")
    page = html(outcome(store), store)
    before = [(row["level"], row["p_value"], row["score"]) for row in store.rows("scores")]
    install()
    found = outcome(store)
    reason = "no installed package registers it"
    assert found.missing == {f"{role} {name}": reason for role, name in names.items()}
    score(store)
    assert [(row["level"], row["p_value"], row["score"]) for row in store.rows("scores")] == before
    score(store, fpr=0.2)
    rows = store.rows("scores")
    assert [row["flagged"] for row in rows] == [row["p_value"] <= 0.2 for row in rows]
    assert all(row["first_flagged_step"] is None for row in rows)
    assert all("acme " in row["reason"] for row in rows)
    other = html(outcome(store), store)
    assert "No charts: no installed package registers it." in other
    assert "No charts" not in page
    for text in (
        other,
        model_card(found),
        cryptomnesia("report", store.folder)[1],
        cryptomnesia("rescore", store.folder)[1],
    ):
        assert "ot in this installation: detector acme (no installed package registers it)" in " ".join(text.split())
    assert sarif(found)["runs"][0]["results"] is not None
    assert "acme" not in answers(found)
    assert compare(found, found, least=Level.suspected).new == []
    code, _, err = cryptomnesia("compare", store.folder, store.folder)
    assert code == 0
    assert f"{store.folder}: not in this installation: mitigation acme-remedy" in err
    code, _, err = cryptomnesia("rescore", store.folder, "--detector", "acme-loudest")
    assert (code, "got the unknown detector 'acme-loudest'" in err) == (2, True)
    code, out, _ = cryptomnesia("rescore", store.folder, "--detector", "stability")
    assert (code, "stability, suspected at p ≤ 0.5" in out) == (0, True)
    # what is missing is needed to generate
    code, _, err = cryptomnesia(
        "audit", audit_folder / "tiny", "--prompts", audit_folder / "prompts.txt", "--detector", "acme"
    )
    assert (code, "got the unknown detector 'acme'" in err) == (2, True)


def test_a_run_that_was_cut_short_could_not_be_judged(audited):
    rows = audited.rows("images")
    rows[1] |= {key: value[:2] for key, value in rows[1].items() if key.startswith("norm:")}
    runs = trajectory_of(rows)
    assert not runs.complete
    assert runs.norms["z"].isnan().tolist() == [[False, False, number == 1] for number in range(len(rows))]


def test_the_verdict_of_an_image_that_was_made_again_says_so_under_another_detector(audited, tmp_path):
    store = copied(audited, tmp_path / "copy")
    rows = audited.rows("images")
    flagged = [row for row in rows if row["flagged"]]
    assert flagged
    assert all(row["action"] in ("mitigated", "withheld") for row in flagged)
    score(store, detector=Stability())
    for row, scored in zip(rows, store.rows("scores"), strict=True):
        assert scored["action"] == row["action"]
        assert scored["reason"].startswith("stability ")
        assert (f"in the run: {row['reason']}" in scored["reason"]) == row["flagged"]


def test_an_outcome_names_no_method_that_the_run_left_out(audit_folder, found):
    about = {**found.about, "methods": {**found.about["methods"], "localizer": None, "mitigation": None}}
    assert replace(found, about=about).missing == {}
    assert "No maps were computed; no mitigation was tried" in model_card(replace(found, about=about)).replace(
        "\n", " "
    )
