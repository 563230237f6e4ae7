import json
import logging
import multiprocessing
import random
import time
from threading import Thread
from unittest.mock import Mock

import pytest
import torch
from diffusers import DDIMPipeline, StableDiffusionPipeline
from PIL import Image

from cryptomnesia import Calibration, Drift, MapMean, Rephrasing, Stability, UsageError, audit, calibrate
from cryptomnesia.auditing import audited as auditing
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.requests import Request
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store
from cryptomnesia.localizers import Curvature, CurvatureDifference
from cryptomnesia.localizers.jacobian.diagonal import DiagonalEstimator
from cryptomnesia.report.markdown import model_card
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion, unconditional
from tiny_audit import settings


def test_a_run_holds_evidence_on_every_image(audit_folder, audited):
    rows, scores = audited.rows("images"), audited.rows("scores")
    prompts = ("a blue star", "a blue star", "a green ring", "a green ring", "a red bar", "a red bar")
    assert [(row["prompt"], row["seed"]) for row in rows] == list(zip(prompts, range(6), strict=True))
    calibration = Calibration.load(audited.folder / "calibration.safetensors")
    for row, scored in zip(rows, scores, strict=True):
        p = calibration.p_value(Drift(), torch.tensor([scored["score"]])).item()
        assert scored["p_value"] == scored["p_value:drift"] == pytest.approx(p)
        assert scored["score"] == scored["score:drift"] == row["score"]
        assert row["flagged"] == (p <= 0.5) == (scored["level"] != "none") == (row["map"] is not None)
        assert scored["flagged"] == row["flagged"]
        assert (row["first_flagged_step"] is not None) == row["flagged"]
        assert row["reason"].startswith("drift ")
        with Image.open(audited.folder / row["image"]) as picture:
            assert picture.size == (16, 16)
    found = outcome(audited)
    assert sum(found.counts.values()) == 3
    assert [judged.level for judged in found.prompts] == sorted(
        (judged.level for judged in found.prompts), reverse=True
    )
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gate"]["prompts"] == 3


def test_a_run_says_what_auto_stood_for(audited):
    assert audited.about["methods"] == {
        "detector": "drift",
        "localizer": "settled-detail",
        "mitigation": "partial-captions",
    }
    assert audited.about["made_by"]["detector"] == "drift(less=3.0)"
    assert audited.about["fingerprint"]["scheduler"] == "DDIMScheduler"
    assert audited.about["fingerprint"]["steps"] == 3


def test_running_again_changes_nothing(audit_folder, audited, monkeypatch):
    # NaN is unlike itself
    before = str(audited.rows("images")), str(audited.rows("scores"))
    score(audited, detector="stability", fpr=0.3)
    assert str(audited.rows("scores")) != before[1]
    monkeypatch.setattr(auditing.Examiner, "__call__", None)
    again = audit(**settings(audit_folder, images_per_prompt=2), output=audit_folder / "run")
    assert (str(again.rows("images")), str(again.rows("scores"))) == before
    with pytest.raises(UsageError, match="holds another run: images_per_prompt is 3, there 2; give another folder"):
        audit(**settings(audit_folder, images_per_prompt=3), output=audit_folder / "run")


def test_a_loaded_pipeline_and_a_list_of_prompts_give_the_same_run(audit_folder, audited, tmp_path):
    prompts = (audit_folder / "prompts.txt").read_text().splitlines()
    given = settings(audit_folder, images_per_prompt=2, model=stable_diffusion(), prompts=prompts)
    store = audit(**given, output=tmp_path / "run")
    for stage in ("references", "images", "scores"):
        assert str(store.rows(stage)) == str(audited.rows(stage))
    assert store.about["model"] == "StableDiffusionPipeline"
    assert (store.about["settings"]["model"], store.about["settings"]["prompts"]) == (None, None)


def test_methods_and_the_calibration_may_be_objects(audit_folder, tmp_path):
    pipe = stable_diffusion()
    curvature = Curvature(estimator=DiagonalEstimator(probes=8))
    calibration = calibrate(pipe, PROMPTS, localizers=[curvature], batch_size=34, **CALL)
    given = settings(audit_folder, model=pipe, references=None, calibration=calibration)
    methods = {"detector": Stability(), "localizer": curvature, "mitigation": Rephrasing(most=1)}
    store = audit(**given | methods, output=tmp_path / "run")
    assert store.about["methods"] == {
        "detector": "stability",
        "localizer": "curvature",
        "mitigation": "rephrasing",
    }
    assert store.about["made_by"] == {name: method.describe() for name, method in methods.items()}
    assert "probes=8" in store.about["made_by"]["localizer"]
    assert all(len(row["dropped"]) <= 1 for row in store.rows("images"))
    assert outcome(store).detector == "stability"
    other = {**methods, "mitigation": Rephrasing(most=2)}
    with pytest.raises(UsageError, match=r"another run: made_by.mitigation is rephrasing\(probe=2, most=2\), there "):
        audit(**given | other, output=tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"got the model and the detector and .* as an object, and several workers load"
    ):
        audit(**given | methods, output=tmp_path / "other", workers=2)
    with pytest.raises(UsageError, match="got dtype with a loaded pipeline, which has its own"):
        audit(**given, dtype="float16", output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_parts_can_be_switched_off(audit_folder, tmp_path):
    store = audit(**settings(audit_folder, localize=False, mitigate=False), output=tmp_path / "run")
    assert store.about["methods"] == {"detector": "drift", "localizer": None, "mitigation": None}
    rows = store.rows("images")
    assert any(row["flagged"] for row in rows)
    assert all(
        (row["map"], row["map_missing"], row["action"], row["instead"]) == (None, None, "none", None) for row in rows
    )
    assert not any(key.startswith("map") for key in store.rows("references")[0])
    found = outcome(store)
    assert (found.unmapped, found.gate.outcome) == (0, "undecided")
    # without a second signal every model would pass this gate in the end
    with pytest.raises(UsageError, match="none can be corroborated, so every model would pass; give fail_on"):
        outcome(store, max_rate=0.5)
    assert outcome(store, max_rate=0.5, fail_on="suspected").gate.limit == 0.5
    with pytest.raises(UsageError, match="none can be corroborated, so every model would pass; give fail_on"):
        audit(**settings(audit_folder, localize=False, max_rate=0.5), output=tmp_path / "other")


def test_the_words_of_flagged_images_are_compared_if_asked_for(audit_folder, tmp_path):
    store = audit(**settings(audit_folder, localize=False, mitigate=False, words=True), output=tmp_path / "run")
    for row in store.rows("images"):
        assert (row["words"] is not None) == row["flagged"]
        for word in row["words"] or ():
            assert word["text"] in row["prompt"]
            assert word["left_out"] <= 1
            assert 0 <= word["gradient"] <= 1
    assert any(row["words"] for row in store.rows("images"))
    model_without_captions = settings(audit_folder, model=unconditional(DDIMPipeline), guidance=None, words=True)
    with pytest.raises(UsageError, match="takes no captions, so there are no words to compare"):
        audit(**{**model_without_captions, "prompts": ["", " "]}, output=tmp_path / "other")


def training(folder):
    """Twelve training images and a broken one."""
    folder.mkdir()
    for number in range(12):
        Image.effect_noise((16, 16), number).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def work(arguments, folder, written, steps):
    """A worker in a process of its own, which logs every batch that it wrote and every step of its progress."""
    torch.set_num_threads(1)
    write = Store.write

    def write_and_log(store, stage, number, rows):
        write(store, stage, number, rows)
        with written.open("a") as lines:
            lines.write(f"{stage} {number}\n")

    def log(stage, done, total):
        with steps.open("a") as lines:
            lines.write(f"{stage} {done} of {total}\n")
        # so that the test sees the step and can kill the worker before the next one
        time.sleep(0.01)

    Store.write = write_and_log
    audit(**arguments, output=folder, progress=log)


def lines_of(file):
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(audit_folder, tmp_path):
    """Killed twenty times after a random number of steps, half of the times while two workers share the run."""
    (audit_folder / "many.txt").write_text("\n".join(f"a blue star {number}" for number in range(40)))
    images = training(tmp_path / "images")
    arguments = settings(audit_folder, prompts=audit_folder / "many.txt", batch_size=4, training_images=images)
    expected = audit(**arguments, output=tmp_path / "whole")
    folder, written, steps = tmp_path / "killed", tmp_path / "written.txt", tmp_path / "steps.txt"
    context = multiprocessing.get_context("fork")
    counts = random.Random(0)
    done, killed = [], 0
    for attempt in range(20):
        wanted = len(lines_of(steps)) + counts.randint(2, 12)
        workers = [
            context.Process(target=work, args=(arguments, folder, written, steps)) for _ in range(1 + attempt % 2)
        ]
        for worker in workers:
            worker.start()
        while len(lines_of(steps)) < wanted and any(worker.is_alive() for worker in workers):
            time.sleep(0.005)
        killed += any(worker.is_alive() for worker in workers)
        for worker in workers:
            worker.kill()
            worker.join()
        done.append(len(list(folder.glob("[ri]*/*.parquet"))))
    assert killed >= 10
    assert done == sorted(done)
    assert len(set(done)) >= 5
    batches = lines_of(written)
    assert len(set(batches)) == len(batches) <= done[-1] + 1
    resumed = audit(**arguments, output=folder)
    for stage in ("references", "images", "scores"):
        assert str(resumed.rows(stage)) == str(expected.rows(stage))
    assert not list((resumed.folder / "images").glob("*.unfinished"))


def test_more_workers_than_a_machine_can_have_are_refused(audit_folder, tmp_path):
    with pytest.raises(UsageError, match=r"got 99999999999999 workers, each a process, on \d+ cores; give at most \d+"):
        audit(**settings(audit_folder), output=tmp_path / "run", workers=99999999999999)
    assert not (tmp_path / "run").exists()


def test_several_processes_share_a_run(audit_folder, tmp_path):
    """From the index of training images to the scores, and each batch is examined by one of them."""
    images = training(tmp_path / "images")
    arguments = settings(audit_folder, images_per_prompt=2, batch_size=1, training_images=images)
    threads = torch.get_num_threads()
    alone, shared = (audit(**arguments, output=tmp_path / f"by {workers}", workers=workers) for workers in (1, 2))
    assert torch.get_num_threads() == threads
    for stage in ("images", "scores"):
        assert str(shared.rows(stage)) == str(alone.rows(stage))
    assert alone.about["skipped"].keys() == {"broken.png"}
    assert "12 by tiles, 32 pixels, 4 across; 1 more files could not be used" in model_card(outcome(alone))


def test_no_process_is_started_for_which_there_is_no_batch(audit_folder, audited, tmp_path, monkeypatch):
    given = {"references": None, "calibration": audited.folder / "calibration.safetensors"}
    started = []

    def record(request, folder, workers):
        started.append(workers)
        return helped(request, folder, 1)

    helped = auditing._helped
    monkeypatch.setattr(auditing, "_helped", record)
    for size in (1, 2, 4):
        audit(**settings(audit_folder, **given, batch_size=size), output=tmp_path / f"by {size}", workers=16)
    # three prompts
    assert started == [3, 2, 1]
    audit(**settings(audit_folder), output=tmp_path / "calibrating", workers=16)
    # the references are work as well
    assert started[3:] == [16]


def test_processes_wait_until_the_first_has_begun_the_run(audit_folder, tmp_path, monkeypatch):
    folder, begun = tmp_path / "run", multiprocessing.get_context("spawn").Event()
    worked = []
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    monkeypatch.setattr(auditing, "Thread", lambda **_: Thread(target=begun.set))
    monkeypatch.setattr(auditing, "signal", Mock())
    monkeypatch.setattr(auditing, "_run", lambda request, *_: worked.append((request.model, begun.is_set())))
    given = settings(audit_folder)
    request = Request.of(given.pop("model"), given.pop("prompts"), given)
    auditing._help(request, folder, torch.get_num_threads(), begun)
    ((model, waited),) = worked
    assert waited
    assert isinstance(model, StableDiffusionPipeline)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"detector": "tarot"}, "unknown detector 'tarot'"),
        ({"localizer": "tarot"}, "unknown localizer 'tarot'"),
        ({"mitigation": "tarot"}, "unknown mitigation 'tarot'"),
        (
            {"fpr": 0.001},
            r"no p-value is below 0\.0145; a rate of 0\.001 needs 1498 reference prompts, or give a higher",
        ),
        ({"prompts": "references.txt"}, "102 prompts are references as well, 'a red circle 0' for one; take them out"),
        ({"prompts": []}, "got no prompts; give at least one"),
        ({"prompts": ["a red bar", " "]}, "got an empty prompt; give a text"),
        ({"prompts": ["a red bar", 3]}, "got 3 among the prompts; give texts only"),
        ({"prompts": ["half \ud800"]}, "half of a surrogate pair; write it out whole"),
        ({"training_images": "few"}, "the index holds 3 pictures, too few to tell"),
        ({"training_images": ".."}, "is among the training images, which would match it; give another folder"),
        ({"training_images": "nowhere"}, "no folder .*nowhere; give the folder of the training images"),
        ({"references": None}, "got no calibration, and there is none beside the model; give references"),
        ({"references": None, "calibration": "nowhere"}, "no calibration file .*nowhere; make one with"),
        ({"localizer": "collapse-checkpoint"}, "an audit has no second checkpoint, which collapse-checkpoint needs"),
        ({"guidance": 1.0, "detector": "guidance-mean"}, "guidance-mean needs the unconditional branch"),
        ({"guidance": 1.0, "localizer": "collapse"}, "collapse needs the unconditional branch"),
        (
            {"steps": 1},
            "drift needs 2 evaluations before there is a score, and a run of 1 steps has 1; give more steps",
        ),
        ({"localizer": Curvature(step=7)}, "got the evaluation 7 of a run of 3; give one in 0 … 2"),
        ({"height": 24}, "got height 24 and width None; give both or neither"),
        ({"stepz": 3}, r"got the unknown setting stepz \(did you mean steps\?\)"),
        ({"workers": 0}, "got 0 workers; give at least 1"),
        ({"detector": "settled-detail"}, "the detector settled-detail says the same as the map settled-detail"),
        (
            {"detector": "collapse", "localizer": "settled-detail"},
            "the detector collapse says the same as the map settled-detail, because both are made from",
        ),
        (
            {"detector": "curvature", "localizer": "curvature-difference"},
            "the detector curvature says the same as the map curvature-difference, because both are made from",
        ),
        (
            {"detector": "guidance-last", "localizer": "score-difference"},
            "the detector guidance-last says the same as the map score-difference",
        ),
        (
            {"detector": "bright-ending", "localizer": "bright-ending"},
            "the map bright-ending, because both are made from bright-ending, so the map is no second signal",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_generated(audit_folder, tmp_path, monkeypatch, more, message):
    (audit_folder / "few").mkdir(exist_ok=True)
    for number in range(3):
        Image.effect_noise((16, 16), number).save(audit_folder / "few" / f"{number}.png")
    monkeypatch.setattr(auditing, "Recording", None)
    paths = {
        name: audit_folder / value
        for name in ("prompts", "training_images", "calibration")
        if isinstance(value := more.get(name), str)
    }
    with pytest.raises(UsageError, match=message) as refused:
        audit(**settings(audit_folder, **more | paths), output=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_given_calibration_that_does_not_fit_is_refused_before_anything_is_generated(audit_folder, tmp_path):
    pipe = stable_diffusion()
    calibrate(pipe, PROMPTS, batch_size=34, **CALL).save(tmp_path / "calibration.safetensors")
    given = {"references": None, "calibration": tmp_path / "calibration.safetensors"}
    with pytest.raises(UsageError, match="steps is 4, calibrated 3"):
        audit(**settings(audit_folder, **given, steps=4), output=tmp_path / "run")
    with pytest.raises(UsageError, match=r"the calibration has no maps of collapse .*; or audit without maps"):
        audit(**settings(audit_folder, **given, localizer="collapse"), output=tmp_path / "run")
    with pytest.raises(UsageError, match=r"a false-positive rate of 0\.01 needs at least 99 null references"):
        audit(**settings(audit_folder, **given, fpr=0.01, localize=False), output=tmp_path / "run")
    with pytest.raises(UsageError, match="the calibration has not recorded curvature, which curvature reads"):
        audit(**settings(audit_folder, **given, detector="curvature", localize=False), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(audit(**settings(audit_folder, **given, localize=False), output=tmp_path / "run").rows("images")) == 3


def test_maps_that_nobody_named_are_left_out_if_the_calibration_has_none(audit_folder, tmp_path, caplog):
    pipe = stable_diffusion()
    calibration = calibrate(pipe, PROMPTS, batch_size=34, **CALL)
    given = settings(audit_folder, model=pipe, references=None, mitigate=False)
    warning = "the audit goes on without it: the calibration has no maps of settled-detail (it has: none); generate the"
    caplog.clear()
    with caplog.at_level(logging.WARNING, "cryptomnesia"):
        store = audit(**given, calibration=calibration, output=tmp_path / "run")
        assert store.about["methods"]["localizer"] is None
        assert all(row["map"] is None for row in store.rows("images"))
        # a run that was stopped goes on, without the calibration too, which it holds
        store.path("images", 0).unlink()
        audit(**given, output=tmp_path / "run")
    (first, second) = (record.getMessage() for record in caplog.records)
    assert first.startswith(warning)
    assert second == first
    # the same holds for a calibration beside the model
    beside = tmp_path / "tiny"
    pipe.save_pretrained(beside)
    calibration.save(beside / "calibration.safetensors")
    alone = audit(**{**given, "model": str(beside)}, output=tmp_path / "beside")
    assert alone.about["methods"]["localizer"] is None
    with pytest.raises(UsageError, match=r"the calibration has no maps of curvature .*; or audit without maps"):
        audit(**given, calibration=calibration, localizer="curvature", output=tmp_path / "other")


def test_a_run_goes_on_without_the_file_of_its_calibration(audit_folder, tmp_path):
    file = tmp_path / "calibration.safetensors"
    calibrate(stable_diffusion(), PROMPTS, batch_size=34, **CALL).save(file)
    arguments = settings(audit_folder, references=None, calibration=file, localize=False)
    before = str(audit(**arguments, output=tmp_path / "run").rows("scores"))
    file.unlink()
    (tmp_path / "run" / "images" / "00000.parquet").unlink()
    assert str(audit(**arguments, output=tmp_path / "run").rows("scores")) == before


def test_an_unfinished_run_has_no_outcome(audit_folder, audited, tmp_path):
    store = Store.create(tmp_path / "unfinished", audited.about)
    with pytest.raises(UsageError, match="is not finished: 0 of 2 batches"):
        outcome(store)


def test_a_run_may_be_judged_by_the_mean_of_a_map(audit_folder, tmp_path):
    store = audit(**settings(audit_folder, detector="curvature-difference"), output=tmp_path / "run")
    calibration = Calibration.load(store.folder / "calibration.safetensors")
    assert set(calibration.runs.signals) == {"curvature-difference"}
    assert set(calibration.maps) == {"settled-detail"}
    before = str(store.rows("scores"))
    detector = MapMean(CurvatureDifference())
    for row, scored in zip(store.rows("images"), store.rows("scores"), strict=True):
        mean = torch.tensor(row["signal:curvature-difference"]).double().mean().float().item()
        assert scored["score"] == mean
        p = calibration.p_value(detector, torch.tensor([mean])).item()
        assert scored["p_value"] == pytest.approx(p)
        assert row["flagged"] == (p <= 0.5)
        assert "score:collapse" not in scored
    found = outcome(store)
    assert not any(key.startswith("signal:") for image in shown_images(found) for key in image)
    assert found.detector == "curvature-difference"
    score(store, detector="drift")
    assert outcome(store).detector == "drift"
    score(store)
    assert str(store.rows("scores")) == before
    with pytest.raises(UsageError, match="the run stored no guidance-map, which guidance-map reads; audit again with"):
        score(store, detector="guidance-map")


def shown_images(found):
    return [image for prompt in found.to_json()["prompts"] for image in prompt["images"]]


class Overflowing:
    """Makes a network's output NaN for the images of one prompt: where maps ask the network, or always."""

    def __init__(self, pipe, prompt, monkeypatch, always=False):
        with torch.no_grad():
            self.wanted = pipe.encode_prompt(prompt, "cpu", 1, False)[0][0]
        self.probing, self.always = False, always
        estimate = DiagonalEstimator.estimate

        def probe(estimator, *args, **kwargs):
            self.probing = True
            try:
                return estimate(estimator, *args, **kwargs)
            finally:
                self.probing = False

        monkeypatch.setattr(DiagonalEstimator, "estimate", probe)
        pipe.unet.register_forward_hook(self.spoil, with_kwargs=True)

    def spoil(self, network, args, kwargs, output):
        if not (self.probing or self.always):
            return output
        captions = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        broken = torch.tensor([torch.allclose(caption, self.wanted) for caption in captions])
        value = output[0].masked_fill(broken.view(-1, 1, 1, 1), torch.nan)
        return type(output)(value) if not isinstance(output, tuple) else (value, *output[1:])


def test_a_map_that_is_not_finite_is_missing_for_that_image_alone(audit_folder, tmp_path, monkeypatch, capsys):
    pipe = stable_diffusion()
    Overflowing(pipe, "a green ring", monkeypatch)
    # everything is flagged
    given = settings(audit_folder, model=pipe, images_per_prompt=2, fpr=0.99, mitigate=False)
    store = audit(**given, output=tmp_path / "run")
    rows = store.rows("images")
    assert all(row["flagged"] for row in rows)
    for row in rows:
        broken = row["prompt"] == "a green ring"
        assert (row["map"] is None) == (row["mask"] is None) == (row["fraction"] is None) == broken
        assert (row["map_missing"] or "").startswith("could not tell: the network's output is not finite") == broken
    whole = audit(**settings(audit_folder, images_per_prompt=2, fpr=0.99, mitigate=False), output=tmp_path / "whole")
    for row, other in zip(rows, whole.rows("images"), strict=True):
        if row["prompt"] != "a green ring":
            # a smaller batch rounds in another way
            assert torch.allclose(torch.tensor(row["map"]), torch.tensor(other["map"]), atol=1e-4)
    found = outcome(store)
    assert found.unmapped == found.to_json()["unmapped"] == 2
    # with a map it might be corroborated, so it does not help to pass
    assert outcome(store, fail_on="corroborated").gate.unknown == 1
    assert outcome(store, fail_on="suspected").gate.unknown == 0
    assert "2 flagged images have no map" in model_card(found).replace("\n", " ")


def test_a_run_whose_latents_are_not_finite_is_unknown_and_the_others_go_on(audit_folder, tmp_path, monkeypatch):
    pipe = stable_diffusion()
    Overflowing(pipe, "a green ring", monkeypatch, always=True)
    store = audit(**settings(audit_folder, model=pipe), output=tmp_path / "run")
    levels = {row["prompt"]: row["level"] for row in store.rows("scores")}
    assert levels.pop("a green ring") == "unknown"
    assert "unknown" not in levels.values()
    (row,) = (row for row in store.rows("scores") if row["level"] == "unknown")
    assert row["reason"].startswith("could not tell: the latents are not finite from evaluation 0 on")
    assert outcome(store).gate.unknown == 1
