"""The bench of mitigations on a random miniature, and its figures on sights that were made up."""

from dataclasses import asdict

import numpy as np
import pytest

from clip_models import save
from cryptomnesia import UsageError
from cryptomnesia.bench import remaking
from cryptomnesia.bench.clip_score import ClipScore
from cryptomnesia.bench.mitigating import PACKET, MitigationBench
from cryptomnesia.bench.mitigation_figures import UNTOUCHED, figures_of
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.cli import benches
from cryptomnesia.detectors import default_detector
from cryptomnesia.mitigations import GuidanceDelay, PartialCaptions, Rephrasing, StabilityRule
from cryptomnesia.parts import run as run_bench
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import BenchAttackSettings, BenchMitigateSettings
from cryptomnesia.testing.miniatures import stable_diffusion

CALL = {"num_inference_steps": 3, "guidance_scale": 2.0}
TRIALS = [
    *(Trial(f"a red {shape}", MEMORIZED, shape, number) for number, shape in enumerate(("ring", "disc", "bar"))),
    *(Trial(f"a blue {shape}", "ordinary", shape, 9 + number) for number, shape in enumerate(("ring", "disc"))),
]
REFERENCES = [f"a green star {number}" for number in range(148)]


class Look:
    """Says that every picture is no copy, and shows half of its caption."""

    def __call__(self, trials, pictures):
        assert pictures.dtype == np.uint8
        known = [trial.group == MEMORIZED for trial in trials]
        return [
            {
                "pixels": False if of else None,
                "structure": trial.cluster == "bar" if of else None,
                "distance": 1.0 if of else None,
                "similarity": 0.0 if of else None,
                "recognized": False,
                "shown": 0.5,
                "confidence": 0.9,
            }
            for trial, of in zip(trials, known, strict=True)
        ]

    def frechet(self, pictures):
        return float(len(pictures))

    def mask(self, trial, picture):
        mask = np.zeros(picture.shape[:2], dtype=bool)
        mask[:2] = True
        return mask


MITIGATIONS = [PartialCaptions(), GuidanceDelay(), StabilityRule()]


def run(folder, mitigations=MITIGATIONS, **more):
    setup = Setup.of(stable_diffusion(), CALL)
    given = {"call": CALL, "about": {"model": "a miniature"}, "batch_size": 2, "look": Look(), **more}
    given |= {"trials": TRIALS, "references": REFERENCES, "folder": folder, "mitigations": mitigations}
    return run_bench(lambda: MitigationBench(setup=setup, detector=default_detector(setup), **given), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mitigations")
    return folder, run(folder)


def test_memorized_pictures_are_made_under_every_mitigation_and_others_where_runs_are_corrected(whole):
    _, packet = whole
    names = [UNTOUCHED, "partial-captions", "guidance-delay", "stability-published"]
    for row in packet.rows[:3]:
        assert list(row["pictures"]) == names
    for row in packet.rows[3:]:
        assert list(row["pictures"]) == [UNTOUCHED, "stability-published"]
    counted = packet.figures["mitigations"]
    assert counted[UNTOUCHED]["evaluations"] == 3
    assert counted["guidance-delay"]["evaluations"] == 3
    # the run, and first evaluations for the captions without one of three words
    assert counted["partial-captions"]["evaluations"] >= 3 + 3
    assert counted[UNTOUCHED]["change"]["all"]["value"] == 0
    assert counted["guidance-delay"]["change"]["all"]["value"] > 0
    assert counted["guidance-delay"]["copies"]["structure"]["value"] == pytest.approx(1 / 3)
    # a guard refuses delayed guidance beside this detector, so it returns nothing
    assert counted["guidance-delay"]["returned"] is None
    assert all(row["pictures"]["stability-published"]["own_run"] for row in packet.rows)
    assert packet.about["frechet"][UNTOUCHED] == {MEMORIZED: 3.0, "ordinary": 2.0}


def test_flagged_pictures_of_other_captions_are_made_again(tmp_path):
    packet = run(tmp_path, [Rephrasing(), GuidanceDelay()], fpr=0.99)
    flagged = [row for row in packet.rows[3:] if row["pictures"][UNTOUCHED]["flagged"]]
    assert flagged
    for row in packet.rows[3:]:
        assert ("rephrasing" in row["pictures"]) == (row in flagged)
    # a guard refuses delayed guidance beside this detector
    assert list(packet.figures["false_alarms"]) == ["rephrasing"]
    (found,) = packet.figures["false_alarms"]["rephrasing"].values()
    assert found["images"] == len(flagged)
    assert found["evaluations"] >= 3
    assert found["returned"]["value"] == np.mean([not row["pictures"]["rephrasing"]["flagged"] for row in flagged])
    # a run that is corrected while it goes on is no second one
    assert "false_alarms" not in run(tmp_path / "own", [StabilityRule()], fpr=0.99).figures


def test_an_interrupted_bench_goes_on_and_a_changed_one_is_refused(whole, cryptomnesia):
    folder, packet = whole
    (folder / "guidance-delay-00001.safetensors").unlink()
    (folder / PACKET).unlink()
    again = run(folder)
    for one, other in zip(packet.rows, again.rows, strict=True):
        for name, seen in one["pictures"].items():
            assert {**seen, "seconds": 0} == {**other["pictures"][name], "seconds": 0}
    code, out, _ = cryptomnesia("bench", "verify", str(folder / PACKET))
    assert code == 0
    assert "partial-captions" in out
    with pytest.raises(UsageError, match="was made by partial-captions"):
        run(folder, mitigations=[PartialCaptions(parts=1)])
    with pytest.raises(UsageError, match="give every name once"):
        run(folder, mitigations=[PartialCaptions(), PartialCaptions(parts=1)])


class Clip:
    """Scores that are made up: the number of a picture in its call."""

    weights = "a digest"

    def __init__(self):
        self.captions = []

    def __call__(self, captions, pictures):
        assert pictures.dtype == np.uint8
        self.captions.append(captions)
        return [float(number) for number in range(len(pictures))]


def test_a_finished_bench_is_compared_by_clip_without_making_a_picture(whole, monkeypatch, cryptomnesia):
    folder, _ = whole
    packet = run(folder)
    monkeypatch.setattr(remaking.Maker, "make", None)
    clip = Clip()
    compared = run(folder, clip=clip)
    assert compared.about == {**packet.about, "clip": "a digest"}
    every, memorized = [trial.prompt for trial in TRIALS], [trial.prompt for trial in TRIALS[:3]]
    assert clip.captions == [every, memorized, memorized, every]
    for number, one in enumerate(compared.rows):
        assert {seen["clip"] for seen in one["pictures"].values()} == {number}
    assert compared.figures["mitigations"]["guidance-delay"]["clip"]["value"] == 1
    assert compared.figures["ordinary"]["ordinary"]["clip"]["value"] == 3.5
    code, out, _ = cryptomnesia("bench", "verify", folder / PACKET)
    assert code == 0
    assert "CLIP" in out

    again = run(folder)
    assert again.about == packet.about
    assert again.figures == packet.figures
    assert not any("clip" in seen for one in again.rows for seen in one["pictures"].values())
    assert "CLIP" not in cryptomnesia("bench", "verify", folder / PACKET)[1]


def test_a_clip_model_scores_the_pictures_that_the_bench_kept(whole, tmp_path):
    folder, _ = whole
    clip = ClipScore.load(save(tmp_path))
    compared = run(folder, clip=clip)
    figures = compared.figures["mitigations"]
    for name in figures:
        scores = [one["pictures"][name]["clip"] for one in compared.rows[:3]]
        assert figures[name]["clip"]["value"] == pytest.approx(np.mean(scores))
        assert figures[name]["clip"]["low"] < figures[name]["clip"]["high"]
    assert compared.about["clip"] == clip.weights


def test_the_interval_of_clip_redraws_clusters_and_leaves_out_pictures_that_were_not_made():
    rows = [row(cluster, before=(True, True, True), after=(False, False, False)) for cluster in "aaaabc"]
    for one, score in zip(rows, (0.2, 0.2, 0.2, 0.2, 0.4, None), strict=True):
        one["pictures"][UNTOUCHED]["clip"] = 0.3
        one["pictures"]["method"] |= {"clip": score, "made": score is not None}
    found = figures_of(rows, [UNTOUCHED, "method"])["mitigations"]
    assert found[UNTOUCHED]["clip"] == pytest.approx({"value": 0.3, "low": 0.3, "high": 0.3})
    # four alike and one, redrawn as two clusters
    assert found["method"]["clip"] == pytest.approx({"value": 0.24, "low": 0.2, "high": 0.4})


def test_packets_without_clip_are_verified(request, cryptomnesia):
    packets = request.config.rootpath / "docs" / "results" / "packets"
    code, out, _ = cryptomnesia("bench", "verify", packets / "mitigate-scenes.json.xz")
    assert code == 0
    assert "CLIP" not in out


def test_clip_is_loaded_before_pictures_are_made(cryptomnesia, monkeypatch, tmp_path):
    given = []

    def record(*_, clip, **__):
        given.append(clip)
        raise UsageError("stop here")

    monkeypatch.setattr(benches, "MitigationBench", record)
    arguments = ("bench", "mitigate", "--ground", "scenes", "--mitigation", "guidance-delay", "-o", tmp_path / "bench")
    assert "stop here" in cryptomnesia(*arguments)[2]
    assert "stop here" in cryptomnesia(*arguments, "--clip", save(tmp_path / "clip"))[2]
    assert given[0] is None
    assert given[1].weights
    code, _, error = cryptomnesia(*arguments, "--clip", tmp_path / "nothing")
    assert code == 2
    assert "no CLIP model" in error
    assert len(given) == 2


def test_attacks_are_not_compared_by_clip():
    assert BenchMitigateSettings.resolve({"ground": "scenes", "clip": "org/name"}, environment={}).clip == "org/name"
    with pytest.raises(UsageError, match="unknown setting clip"):
        BenchAttackSettings.resolve({"ground": "scenes", "clip": "org/name"}, environment={})


def row(cluster, *, before, after, group=MEMORIZED, kind="verbatim"):
    """Copies by (pixels, structure) and whether it is flagged, before and after."""

    def seen(pixels, structure, flagged, change):
        return {
            "pixels": pixels, "structure": structure, "flagged": flagged, "made": True, "recognized": True,
            "shown": 0.5, "confidence": 0.5, "apart": None, "change": change, "change_inside": change,
            "own_run": False, "blind": False,
            "change_outside": 0.0, "evaluations": 10.0, "seconds": 1.0,
        }  # fmt: skip

    trial = asdict(Trial("a", group, cluster, 0, kind))
    return {**trial, "pictures": {UNTOUCHED: seen(*before, 0.0), "method": seen(*after, 0.2)}}


def test_a_copy_by_either_criterion_is_a_copy_and_only_flagged_pictures_are_replaced():
    rows = [
        row("a", before=(True, True, True), after=(False, True, False)),  # returned, a copy by edges
        row("b", before=(True, True, True), after=(True, False, True)),  # still flagged: withheld
        row("c", before=(True, False, False), after=(False, False, False)),  # not flagged: the copy is returned
        row("d", before=(True, True, True), after=(False, False, False)),  # returned, no copy
        row("e", before=(None, None, False), after=(None, None, False), group="ordinary"),
    ]
    found = figures_of(rows, [UNTOUCHED, "method"])
    method = found["mitigations"]["method"]
    assert [method["copies"][by]["value"] for by in ("pixels", "structure", "either")] == [0.25, 0.25, 0.5]
    assert method["returned"]["value"] == 0.5
    assert method["withheld"]["value"] == 0.25
    assert found["mitigations"][UNTOUCHED]["returned"]["value"] == 1
    assert method["copies"]["either"]["low"] < 0.1 < 0.9 < method["copies"]["either"]["high"]
    assert found["ordinary"]["ordinary"]["changed"]["method"]["share"]["value"] == 1
    assert found["counts"] == {MEMORIZED: {"images": 4, "clusters": 4}, "ordinary": {"images": 1, "clusters": 1}}


def test_a_correction_of_the_users_own_run_gives_its_picture_whatever_was_flagged():
    rows = [
        row("a", before=(True, True, True), after=(True, True, False)),
        row("b", before=(True, True, False), after=(True, True, True)),
        row("c", before=(True, True, False), after=(False, False, False)),
    ]
    for one in rows:
        one["pictures"]["method"]["own_run"] = True
    method = figures_of(rows, [UNTOUCHED, "method"])["mitigations"]["method"]
    assert method["returned"]["value"] == pytest.approx(1 / 3)
    assert method["withheld"]["value"] == pytest.approx(1 / 3)


def test_a_model_of_which_nothing_is_known_is_refused(cryptomnesia, tmp_path):
    labels, references = tmp_path / "labels.csv", tmp_path / "references.txt"
    labels.write_text("prompt,label\na,memorized\nb,ordinary\n")
    references.write_text("c\n")
    code, _, error = cryptomnesia(
        "bench", "mitigate", "--model", "bundled", "--labels", str(labels), "--references", str(references), "-o",
        str(tmp_path / "bench"),
    )  # fmt: skip
    assert code == 2
    assert "give a proving ground (--ground)" in error
