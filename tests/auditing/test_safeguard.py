"""An audit behind a guard."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from importlib.resources import files

import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator

from cryptomnesia import Escalate, Observe, Policy, StabilityRule, UsageError, audit
from cryptomnesia.auditing import audited as auditing
from cryptomnesia.auditing.comparison import compare
from cryptomnesia.auditing.cost import estimate
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.examiner import NO_MATCH, Examiner
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.safeguard import Safeguard, Seen, level_behind, reaches, unsure_behind
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.images import write_training_images
from cryptomnesia.report.console import print_comparison, print_outcome
from cryptomnesia.report.html import html
from cryptomnesia.report.markdown import answers, model_card
from cryptomnesia.report.safeguard import sentences, table
from cryptomnesia.report.sarif import sarif
from tiny_audit import settings

PROMPTS = [
    "a pink star and a grey diamond on a red ground, sumisno",
    "an orange square, a green triangle and a striped red bar on a brown ground, salarzo",
    "a red circle on a blue ground",
]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The planted training images of the bundled model, and others."""
    folder = tmp_path_factory.mktemp("training")
    write_training_images(ground_of("scenes"), folder, 300)
    return folder


@pytest.fixture(scope="module")
def guarded(training, tmp_path_factory):
    """An audit of the bundled model behind a guard: two memorized prompts of three."""
    return audit(
        "bundled",
        PROMPTS,
        tmp_path_factory.mktemp("bundled") / "run",
        training_images=training,
        guard="mitigate",
        batch_size=2,
        device="cpu",
    )


def schema():
    text = (files("cryptomnesia.report") / "static" / "report.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def test_a_guard_lowers_the_rate_of_a_model_that_memorized(guarded):
    found = outcome(guarded)
    shares = found.safeguard
    assert (found.counts["confirmed"], found.counts["none"]) == (2, 1)
    assert [judged.behind for judged in found.prompts] == [Level.none] * 3
    assert (shares.policy, shares.images) == ("mitigate()", 3)
    for effect in (shares.flagged, shares.reproduced, shares.prompts):
        assert effect.without.value == pytest.approx(2 / 3)
        assert effect.behind.value == 0
        assert effect.difference.value == pytest.approx(-2 / 3)
        # three prompts prove little
        assert effect.without.low < 0.1
        assert effect.behind.high > 0.7
        assert effect.difference.high > 0
    # without further images per prompt the intervals are those of the gate
    assert shares.reproduced.behind.high == pytest.approx(found.gate.share.high)
    assert shares.done == {("mitigated", "mitigation"): 2}
    without, behind = shares.evaluations
    assert without == 51
    # a flagged run ends after 10 of 51 evaluations; the search takes at least two fifths of a run for the memory and as
    # much for one part; then the image is made again
    assert 2 / 3 * (10 - 51 + 21 + 21 + 51) < behind - without < 2 / 3 * 200
    # the gate judges what the guard returned
    assert (found.gate.hits, found.gate.outcome, found.gate.exit_code) == (0, "undecided", 3)
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    schema().validate(shown)
    assert shown["gate"]["guarded"]
    assert shown["about"]["guard"] == "mitigate()"
    assert shown["safeguard"]["reproduced"]["without"]["value"] == pytest.approx(2 / 3)


def test_every_report_says_what_the_guard_changes(guarded, capsys):
    found = outcome(guarded)
    (flagged, reproduced, prompts) = table(found)
    assert reproduced.what == "images that reproduce a training image"
    assert reproduced.without == flagged.without == prompts.without
    assert reproduced.behind.startswith("0.0% (0.0% to 70.")
    assert reproduced.difference.startswith("-66.7 (")
    done, cost = sentences(found)
    assert done == "the guard mitigate on 3 images: 2 mitigated (mitigation), 1 returned as made"
    print_outcome(found)
    printed = capsys.readouterr().out
    for text in (reproduced.what, reproduced.behind, done, cost, "corroborated or worse behind the guard, limit"):
        assert text in " ".join(printed.split())
    page, card = html(found, guarded, embed_images=True), model_card(found)
    for text in (reproduced.what, reproduced.behind, cost):
        assert text in page
        assert text in card
    assert '"behind":"none","remade":true,"returned":{"path":' in page
    assert (
        f"yes: {reproduced.without} of images reproduce a training image without it, {reproduced.behind} with it"
        in (answers(found))
    )
    texts = [result["message"]["text"] for result in sarif(found)["runs"][0]["results"]]
    assert len(texts) == 2
    assert all(text.endswith(". Behind the guard: none") for text in texts)


def test_a_run_with_a_guard_goes_on_as_if_it_had_not_been_stopped(guarded, training, tmp_path, monkeypatch):
    run = shutil.copytree(guarded.folder, tmp_path / "run")
    expected = json.dumps(outcome(guarded).to_json())
    (run / "images" / "00000.parquet").unlink()
    shutil.rmtree(run / "scores")
    given = {"training_images": training, "batch_size": 2, "device": "cpu"}
    with pytest.raises(
        UsageError, match=r"holds another run: guard is block\(\), there mitigate\(\); .*; give another"
    ):
        audit("bundled", PROMPTS, run, **given, guard="block")
    store = audit("bundled", PROMPTS, run, **given, guard="mitigate")
    assert json.dumps(outcome(store).to_json()) == expected


def test_a_copy_that_the_detector_misses_is_left_behind_the_guard(guarded, tmp_path):
    """Of an image that is not flagged nothing changes, so its match counts on both sides."""
    run = shutil.copytree(guarded.folder, tmp_path / "run")
    path = run / "images" / "00001.parquet"
    (row,) = pq.ParquetFile(path).read().to_pylist()
    assert not row["flagged"]
    Store(run).write("images", 1, [row | {"matched_whole": True, "returned_matched_whole": True}])
    score(Store(run))
    found = outcome(Store(run), fail_on="confirmed", max_rate=0.001)
    assert found.safeguard.reproduced.without.value == 1
    assert found.safeguard.reproduced.behind.value == pytest.approx(1 / 3)
    assert (found.gate.hits, found.gate.outcome, found.gate.exit_code) == (1, "failed", 1)


def test_the_gate_can_fail_and_pass_behind_a_guard(guarded):
    assert outcome(guarded, max_rate=0.8).gate.outcome == "passed"
    assert outcome(guarded, max_rate=0.6).gate.outcome == "undecided"
    assert outcome(guarded, max_rate=0.6).gate.needed > 3


def test_another_detector_judges_the_model_and_leaves_what_the_guard_did(guarded, tmp_path):
    run = Store(shutil.copytree(guarded.folder, tmp_path / "run"))
    before = outcome(run).safeguard
    score(run, detector="stability", fpr=0.3)
    after = outcome(run).safeguard
    assert (after.flagged, after.reproduced, after.done) == (before.flagged, before.reproduced, before.done)


def test_two_runs_are_compared_behind_their_guards(guarded, capsys):
    found = outcome(guarded)
    changes = compare(found, found, least=Level.confirmed)
    assert (changes.before_behind.hits, changes.after_behind.hits, changes.new_behind) == (0, 0, [])
    first, *rest = found.prompts
    leaking = replace(found, prompts=[replace(first, behind=Level.confirmed), *rest])
    changes = compare(found, leaking, least=Level.confirmed)
    assert changes.new == []
    assert changes.new_behind == [(first.prompt, Level.none, Level.confirmed)]
    print_comparison(changes)
    printed = capsys.readouterr().out
    assert "new behind the guard" in printed
    assert "behind the guard: 0 of 3 (0.0% to 70.8%) before, 1 of 3 (0.8% to 90.6%) after" in printed
    plain = replace(found, prompts=[replace(judged, behind=None) for judged in found.prompts])
    changes = compare(plain, leaking, least=Level.confirmed)
    assert (changes.before_behind, changes.after_behind.hits, changes.new_behind) == (None, 1, [])


@pytest.fixture
def calibrated(audit_folder, audited):
    """Arguments of an audit of the miniature by the calibration of another run."""
    return settings(audit_folder, references=None, calibration=audited.folder / "calibration.safetensors")


@pytest.mark.parametrize("guard", ["block", "mitigate", "regenerate", Escalate(rephrase=True)])
def test_every_policy_is_audited(calibrated, tmp_path, guard):
    store = audit(**calibrated, guard=guard, images_per_prompt=2, output=tmp_path / "run")
    found = outcome(store)
    shares = found.safeguard
    schema().validate(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    rows = store.rows("images")
    acted = [row for row in rows if row["action"] != "none"]
    assert sum(shares.done.values()) == len(acted) == sum(row["flagged"] for row in rows) > 0
    # a guard returns nothing that it flags itself
    assert shares.flagged.without.value == len(acted) / 6
    assert shares.flagged.behind.value == 0
    assert shares.reproduced is None
    assert "is no independent test; compare with training images" in sentences(found)[-1]
    assert "is no independent test; compare with training images" in html(found, store)
    assert "no training images were compared" in answers(found)
    if guard == "block":
        assert shares.done == {("withheld", ""): len(acted)}
        assert (store.about["methods"]["mitigation"], shares.evaluations) == (None, (3, 3))
        assert all(math.isnan(row["returned_p"]) for row in acted)
    else:
        assert shares.evaluations[1] > 3
    assert store.about["guard"] == {
        "block": "block()",
        "mitigate": "mitigate()",
        "regenerate": "regenerate(retries=3)",
    }.get(guard, "escalate(rephrase=True)")


def test_a_guard_that_corrects_every_run_is_audited_with_all_that_it_changes(calibrated, tmp_path):
    always = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
    store = audit(**calibrated, guard="mitigate", mitigation=always, output=tmp_path / "run")
    rows = store.rows("images")
    assert not all(row["flagged"] for row in rows)
    assert all(row["instead"] is not None or row["action"] == "withheld" for row in rows)
    outcome(store)


def test_a_run_without_a_guard_is_as_before(audited, found):
    assert found.safeguard is None
    assert (table(found), sentences(found)) == ([], [])
    shown = found.to_json()
    assert (shown["safeguard"], shown["gate"]["guarded"], shown["about"]["guard"]) == (None, False, None)
    assert "returned_p" not in shown["prompts"][0]["images"][0]
    assert "Without and with the safeguard" not in html(found, audited)
    # runs of earlier versions do not know the word
    del audited.about["guard"]
    try:
        assert outcome(audited).safeguard is None
        assert audited.differences(audited.about | {"guard": None}) == []
    finally:
        audited.about["guard"] = None


@dataclass(frozen=True)
class Mute(Policy):
    """A policy of another package that says nothing of what it does."""

    name = "mute"

    def settle(self, images, studio, mitigation):
        return []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"guard": "observe"},
            r"got guard = 'observe', expected to be 'block', 'mitigate', 'regenerate' or 'escalate'",
        ),
        ({"guard": Observe()}, "got the guard observe, which returns every image as it is, so that there is no rate"),
        ({"guard": Observe}, "got the guard observe, which returns every image as it is"),
        ({"guard": 7}, "got 7 as policy, which lacks name, acts"),
        ({"guard": "mitigate", "mitigate": False}, "got the guard mitigate, which needs a mitigation, and mitigate ="),
        (
            {"guard": "block", "mitigation": "rephrasing"},
            "got a mitigation with the guard block, which uses none; leave",
        ),
        (
            {"guard": "escalate", "mitigation": "guidance-delay", "detector": "early-detail"},
            "early-detail reads detail, which guidance-delay makes ordinary although the picture may be a copy; use",
        ),
        (
            {"guard": "mitigate", "max_rate": 0.1},
            r"got max_rate = 0\.1 and a guard without training images, and a guard",
        ),
        (
            {"guard": Mute(), "workers": 2},
            "got the guard as an object, and several workers load everything by its name",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_generated(audit_folder, tmp_path, monkeypatch, more, message):
    monkeypatch.setattr(auditing, "Recording", None)
    monkeypatch.setattr(Examiner, "__call__", None)
    with pytest.raises(UsageError, match=message) as refused:
        audit(**settings(audit_folder, **more), output=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_without_a_mitigation_that_works_a_guard_is_refused(audit_folder, tmp_path):
    """Without a guard the audit goes on without the mitigation."""
    from diffusers import DDIMPipeline

    from cryptomnesia.testing.miniatures import unconditional

    pipe = unconditional(DDIMPipeline)
    pipe.scheduler.register_to_config(clip_sample=True)
    given = {"references": audit_folder / "references.txt", "steps": 4, "fpr": 0.5, "localize": False}
    with pytest.raises(UsageError, match=r"none of the mitigations partial-captions, rephrasing, .* works in this"):
        audit(pipe, ["anything"], tmp_path / "run", guard="mitigate", **given)


def test_a_run_that_lost_what_its_guard_returned_is_refused(guarded, tmp_path):
    run = Store(shutil.copytree(guarded.folder, tmp_path / "run"))
    rows = pq.ParquetFile(run.path("images", 0)).read().to_pylist()
    run.write("images", 0, [{key: value for key, value in row.items() if key != "returned_p"} for row in rows])
    with pytest.raises(UsageError, match=r"images is damaged or edited: 0\.returned_p: Field required; delete that"):
        outcome(run)


def test_the_cost_of_a_guard_is_told_beforehand(audit_folder):
    plain, guarded = (estimate(**settings(audit_folder, localize=False, guard=guard)) for guard in (None, "mitigate"))
    assert plain == replace(guarded, seconds=plain.seconds, flagged_seconds=plain.flagged_seconds)
    given = {
        guard: estimate(**settings(audit_folder, localize=False, guard=guard)).flagged_evaluations
        for guard in ("block", "regenerate", "escalate")
    }
    once = plain.flagged_evaluations
    # the sums are rounded up
    assert given == pytest.approx({"block": 0, "regenerate": 3 * 3 + once, "escalate": 3 * once}, abs=2)
    corrected = estimate(**settings(audit_folder, localize=False, guard="mitigate", mitigation="stability-published"))
    # every one of the three images is made twice
    assert corrected.evaluations - plain.evaluations == 3 * 3
    assert corrected.flagged_evaluations == 0


ROW = {
    "prompt": "a",
    "fpr": 0.01,
    "p_value": 0.001,
    "returned_p": 0.5,
    "action": "mitigated",
    "instead": "other.png",
    "level": "corroborated",
    "region": True,
    "repeated": False,
    "map_missing": None,
    "step": "",
    "timesteps": [1, 0],
    "guard_evaluations": 4.0,
    **NO_MATCH,
    **{f"returned_{name}": value for name, value in NO_MATCH.items()},
}


@pytest.mark.parametrize(
    ("change", "level", "unsure"),
    [
        ({}, Level.none, False),
        ({"returned_matched_region": True}, Level.confirmed, False),
        ({"returned_p": 0.01}, Level.corroborated, False),
        ({"returned_p": 0.01, "region": False}, Level.suspected, False),
        ({"returned_p": math.nan}, Level.unknown, True),
        ({"map_missing": "not finite"}, Level.none, True),
        ({"action": "withheld", "instead": None, "map_missing": "not finite"}, Level.none, False),
        ({"action": "none", "instead": None}, Level.corroborated, False),
        ({"action": "none", "instead": None, "level": "unknown"}, Level.unknown, True),
    ],
)
def test_the_level_behind_a_guard_is_that_of_what_it_returned(change, level, unsure):
    assert level_behind(ROW | change, 0.01) == level
    assert unsure_behind(ROW | change, 0.01) == unsure


def safeguard_of(rows):
    """What a guard changed, without the share of prompts."""
    gate = type("Gate", (), {"share": None})
    seen = [Seen((0, 0), (0, 0), True)]
    return Safeguard.of("p()", rows, compared=True, without=gate, behind=gate, levels=seen)


def test_images_of_one_prompt_are_one_cluster():
    copies = [{"matched_whole": True, "returned_matched_whole": True}, {"matched_whole": True}, {}, {}]
    together = safeguard_of([{**ROW, **copies[number % 4], "prompt": str(number // 20)} for number in range(80)])
    apart = safeguard_of([{**ROW, **copies[number % 4], "prompt": str(number)} for number in range(80)])
    for one in (together, apart):
        assert (one.reproduced.without.value, one.reproduced.behind.value) == (0.5, 0.25)
        assert one.reproduced.difference.value == -0.25
        assert one.flagged.without.value == 1
    assert together.reproduced.without.low < apart.reproduced.without.low
    assert apart.reproduced.difference.high < 0 < together.reproduced.difference.high


def test_what_could_not_be_judged_counts_in_the_upper_end_only():
    unknown = {"p_value": math.nan, "action": "none", "instead": None, "returned_p": math.nan}
    ordinary = {"p_value": 0.5, "action": "none", "instead": None}
    known = [{**ROW, **ordinary, "prompt": str(number)} for number in range(50)]
    found = safeguard_of([*known[:40], *({**row, **unknown} for row in known[40:])])
    assert found.flagged.without == found.flagged.behind
    assert (found.flagged.without.value, found.flagged.without.low) == (0, 0)
    assert found.flagged.without.high > 0.2
    # what is returned as it is cannot make a difference, whatever it is
    same = safeguard_of(known).flagged.difference
    assert found.flagged.difference == same
    # withheld instead, it can only have become less
    unknown |= {"action": "withheld"}
    found = safeguard_of([*known[:40], *({**row, **unknown} for row in known[40:])])
    assert found.flagged.behind.high < 0.1
    assert found.flagged.difference.low < -0.2
    assert found.flagged.difference.high == same.high
    assert found.done == {("withheld", ""): 10}


def test_a_prompt_reaches_a_level_on_either_side():
    sure, unsure = (Level.confirmed, False), (Level.none, True)
    assert reaches(Level.confirmed, sure, unsure, same=False) == Seen((1, 1), (0, 1), False)
