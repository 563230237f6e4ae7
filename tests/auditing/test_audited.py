import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import asdict

import pytest
import torch
from cryptomnesia.calibration.maps import calibrate
from PIL import Image

from cryptomnesia import Calibration, Sampling, UsageError
from cryptomnesia.auditing import run as running
from cryptomnesia.auditing.cost import estimate
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.repetition import repeated
from cryptomnesia.auditing.run import audit
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store
from cryptomnesia.report.markdown import model_card
from cryptomnesia.testing.miniatures import stable_diffusion
from tiny_audit import settings


def test_a_run_holds_evidence_on_every_image(audit_folder, audited):
    rows, scores = audited.rows("images"), audited.rows("scores")
    prompts = ("a blue star", "a blue star", "a green ring", "a green ring", "a red bar", "a red bar")
    assert [(row["prompt"], row["seed"]) for row in rows] == list(zip(prompts, range(6), strict=True))
    calibration = Calibration.load(audited.folder / "calibration.safetensors")
    for row, own in zip(rows, scores, strict=True):
        p = calibration.p_value("drift", torch.tensor([own["drift_score"]])).item()
        assert own["drift_p"] == pytest.approx(p)
        assert row["flagged"] == (p <= 0.5) == (own["level"] != "none") == (row["map"] is not None)
        with Image.open(audited.folder / row["image"]) as picture:
            assert picture.size == (16, 16)
    found = outcome(audited)
    assert sum(found.counts.values()) == 3
    assert [each.level for each in found.prompts] == sorted((each.level for each in found.prompts), reverse=True)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gate"]["prompts"] == 3


def test_running_again_changes_nothing(audit_folder, audited, monkeypatch):
    # NaN is unlike itself
    before = str(audited.rows("images")), str(audited.rows("scores"))
    score(audited, detector="stability", rate=0.3)
    assert str(audited.rows("scores")) != before[1]
    monkeypatch.setattr(running.Examiner, "__call__", None)
    again = audit(settings(audit_folder, images_per_prompt=2), audit_folder / "run")
    assert (str(again.rows("images")), str(again.rows("scores"))) == before
    with pytest.raises(UsageError, match="holds another run"):
        audit(settings(audit_folder, images_per_prompt=3), audit_folder / "run")


def training(folder):
    """Twelve training images and a broken one."""
    folder.mkdir()
    for number in range(12):
        Image.effect_noise((16, 16), number).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def work(chosen, folder, log):
    """A worker in a process of its own, which takes its time over every batch so that it can be killed in it."""
    torch.set_num_threads(1)
    quick = Store.write

    def slow(store, stage, number, rows):
        time.sleep(0.05)
        quick(store, stage, number, rows)
        with log.open("a") as lines:
            lines.write(f"{stage} {number}\n")

    Store.write = slow
    audit(chosen, folder)


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(audit_folder, tmp_path):
    """Killed twenty times at random moments, some of them while two workers share the run."""
    (audit_folder / "many.txt").write_text("\n".join(f"a blue star {number}" for number in range(40)))
    images = training(tmp_path / "images")
    chosen = settings(audit_folder, prompts=audit_folder / "many.txt", batch_size=2, training_images=images)
    expected = audit(chosen, tmp_path / "whole")
    log, progress = tmp_path / "log.txt", []
    context = multiprocessing.get_context("fork")
    moments = random.Random(0)
    for attempt in range(20):
        workers = [
            context.Process(target=work, args=(chosen, tmp_path / "killed", log)) for _ in range(1 + attempt % 2)
        ]
        for worker in workers:
            worker.start()
        time.sleep(moments.uniform(0.2, 1.5))
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        progress.append(len(list((tmp_path / "killed").glob("[ri]*/*.parquet"))))
    assert len(set(progress)) >= 5
    done = log.read_text().splitlines()
    assert len(set(done)) == len(done) <= progress[-1] + 1
    resumed = audit(chosen, tmp_path / "killed")
    for stage in ("references", "images", "scores"):
        assert str(resumed.rows(stage)) == str(expected.rows(stage))
    assert not list((resumed.folder / "images").glob("*.unfinished"))


def test_several_processes_share_a_run(audit_folder, tmp_path):
    """From the index of training images to the scores, and each batch is examined by one of them."""
    images = training(tmp_path / "images")
    chosen = settings(audit_folder, images_per_prompt=2, batch_size=1, training_images=images)
    threads = torch.get_num_threads()
    alone, shared = (audit(chosen, tmp_path / f"by {workers}", workers=workers) for workers in (1, 2))
    assert torch.get_num_threads() == threads
    for stage in ("images", "scores"):
        assert str(shared.rows(stage)) == str(alone.rows(stage))
    assert alone.about["skipped"].keys() == {"broken.png"}
    assert "12 by tiles, 32 pixels, 4 across; 1 more files could not be used" in model_card(outcome(alone))


def test_scores_can_be_made_anew_from_what_was_stored(audit_folder, audited, tmp_path):
    store = running.Store.create(tmp_path / "copy", audited.about)
    for name in ("calibration.safetensors", "maps.safetensors"):
        (store.folder / name).write_bytes((audited.folder / name).read_bytes())
    shutil.copytree(audited.folder / "assets", store.folder / "assets")
    rows = audited.rows("images")
    store.write("images", 0, rows[:4])
    store.write("images", 1, rows[4:])
    score(store, detector="stability", rate=0.3)
    found = outcome(store)
    assert (found.detector, found.rate) == ("stability", 0.3)
    assert [row["stability_p"] <= 0.3 for row in store.rows("scores")] == [
        row["level"] != "none" for row in store.rows("scores")
    ]
    with pytest.raises(UsageError, match="knows no tarot"):
        score(store, detector="tarot")
    foreign = running.Store.create(tmp_path / "foreign", audited.about)
    shutil.copytree(store.folder, foreign.folder, dirs_exist_ok=True)
    foreign.write("images", 0, [{**row, "image": str(audited.folder / row["image"])} for row in rows[:4]])
    with pytest.raises(UsageError, match="which is not its own"):
        score(foreign)
    same = {**audited.about, "settings": {**audited.about["settings"], "map": "score-difference"}}
    with pytest.raises(UsageError, match="guidance-last says the same as the map score-difference"):
        score(running.Store.create(tmp_path / "same", same), detector="guidance-last")


def test_a_run_may_be_judged_by_the_mean_of_a_map(audit_folder, tmp_path):
    chosen = settings(audit_folder, detector="curvature-difference")
    store = audit(chosen, tmp_path / "run")
    calibration = Calibration.load(store.folder / "calibration.safetensors")
    assert "curvature-difference" in calibration.null
    assert "collapse" not in calibration.null
    before = str(store.rows("scores"))
    for row, own in zip(store.rows("images"), store.rows("scores"), strict=True):
        mean = row["curvature-difference_mean"]
        assert own["curvature-difference_score"] == mean
        p = calibration.p_value("curvature-difference", torch.tensor([mean])).item()
        assert own["curvature-difference_p"] == pytest.approx(p)
        assert row["flagged"] == (p <= 0.5)
    told = outcome(store)
    assert all("curvature-difference_mean" not in row for each in told.to_json()["prompts"] for row in each["images"])
    assert told.detector == "curvature-difference"
    score(store, detector="drift")
    assert outcome(store).detector == "drift"
    score(store)
    assert str(store.rows("scores")) == before
    with pytest.raises(UsageError, match="the calibration knows no guidance-map"):
        score(store, detector="guidance-map")
    with pytest.raises(ValueError, match="collapse says the same as the map collapse"):
        settings(audit_folder, detector="collapse")
    with pytest.raises(ValueError, match="curvature says the same as the map curvature-difference"):
        settings(audit_folder, detector="curvature", map="curvature-difference")


def test_a_mean_that_a_run_did_not_take_is_not_made_up(audit_folder, tmp_path):
    references = (audit_folder / "references.txt").read_text().split("\n")
    pipe = stable_diffusion()
    sampling = Sampling(3, 2.0)
    fitted, maps = calibrate(pipe, references, sampling, ["collapse"], detectors=["curvature"], batch_size=34)
    fitted.save(tmp_path / "c.safetensors")
    maps.save(tmp_path / "m.safetensors")
    given = {"calibration": tmp_path / "c.safetensors", "maps": tmp_path / "m.safetensors", "references": None}
    store = audit(settings(audit_folder, **given), tmp_path / "run")
    assert "curvature_score" not in store.rows("scores")[0]
    with pytest.raises(UsageError, match="the run took no maps for curvature; judge by another detector"):
        score(store, detector="curvature")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"detector": "tarot"}, "unknown detector 'tarot'"),
        ({"rate": 0.001}, "102 reference prompts leave 68 for the null, a rate of 0.001 needs 999; give 1499 or more"),
        ({"prompts": "references.txt"}, "102 prompts are references as well, 'a red circle 0' for one; take them out"),
        ({"training_images": "few"}, "the index holds 3 pictures, too few to tell"),
        ({"training_images": ".."}, "is among the training images, which would match it; give another folder"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_is_begun(audit_folder, tmp_path, more, message):
    (audit_folder / "few").mkdir(exist_ok=True)
    for number in range(3):
        Image.effect_noise((16, 16), number).save(audit_folder / "few" / f"{number}.png")
    paths = {name: audit_folder / more[name] for name in ("prompts", "training_images") if name in more}
    with pytest.raises(UsageError, match=message):
        audit(settings(audit_folder, **more | paths), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_unfinished_run_has_no_outcome(audit_folder, audited, tmp_path):
    store = running.Store.create(tmp_path / "unfinished", audited.about)
    with pytest.raises(UsageError, match="is not finished: 0 of 2 batches"):
        outcome(store)


def test_the_cost_is_told_beforehand(audit_folder, tmp_path):
    cost = estimate(settings(audit_folder, images_per_prompt=5))
    # every reference has a map of 16 probes of one branch too
    assert (cost.images, cost.references, cost.evaluations) == (15, 102, 117 * 3 + 102 * 8)
    assert cost.seconds > 0
    assert "15 images and 102 references: 1,167 denoiser evaluations" in str(cost)
    assert asdict(cost)["flagged_evaluations"] > 8
    mean = estimate(settings(audit_folder, images_per_prompt=5, detector="curvature-difference"))
    assert mean.evaluations == 117 * (3 + 16) + 102 * 8
    attention = estimate(settings(audit_folder, images_per_prompt=5, map="bright-ending"))
    assert attention.evaluations == 117 * 3 + 102
    pictures = training(tmp_path / "images")
    with_index = estimate(settings(audit_folder, images_per_prompt=5, training_images=pictures))
    # in half precision, with their names
    assert with_index.bytes - cost.bytes == pytest.approx(13 * 2 * 3072, rel=0.05)
    with pytest.raises(UsageError, match="no folder"):
        estimate(settings(audit_folder, training_images=tmp_path / "nowhere"))


def test_pictures_of_a_prompt_repeat_each_other_where_they_agree_inside_the_region():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, 32, 32, generator=generator) for _ in range(40)]
    pictures[1][:, :, 16:] = pictures[0][:, :, 16:]  # the right half comes again
    prompts = ["again", "again", "other", "other", *(f"ordinary {number}" for number in range(36))]
    right = torch.zeros(8, 8, dtype=torch.bool)
    right[:, 4:] = True
    everywhere = torch.ones(8, 8, dtype=torch.bool)
    assert repeated(prompts, pictures, {0: right, 1: right, 2: right, 3: right}, rate=0.05) == {0, 1}
    assert repeated(prompts, pictures, {0: everywhere, 1: everywhere}, rate=0.05) == set()
    assert repeated(prompts, pictures, {0: right, 1: ~right}, rate=0.05) == set()
    # 37 other prompts cannot support a rate of 0.01, and where the others are as much alike it says nothing
    assert repeated(prompts, pictures, {0: right, 1: right}, rate=0.01) == set()
    plain = [picture.clone() for picture in pictures]
    for number in range(2, 20):
        plain[number][:, :, 16:] = plain[0][:, :, 16:]
    assert repeated(prompts, plain, {0: right, 1: right}, rate=0.05) == set()


def test_levels_follow_from_the_signals(audit_folder, audited, tmp_path):
    rows = audited.rows("images")
    store = running.Store.create(tmp_path / "levels", audited.about)
    for name in ("calibration.safetensors", "maps.safetensors"):
        (store.folder / name).write_bytes((audited.folder / name).read_bytes())
    shutil.copytree(audited.folder / "assets", store.folder / "assets")
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
    score(store, rate=0.99)
    assert [Level[row["level"]] for row in store.rows("scores")][: len(known)] == [level for _, level in known]
