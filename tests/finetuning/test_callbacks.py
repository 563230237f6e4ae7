"""A training that has its checkpoints measured: in another process, in this one, by accelerate and by transformers."""

import json
import logging
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import CopyingCallback, CopyingMeter, UsageError
from cryptomnesia.finetuning.callbacks import LOWEST
from cryptomnesia.testing.miniatures import CALL, stable_diffusion
from lora_files import write_lora

CAPTIONS = ("a red circle", "a blue star", "a green ring")

PROGRAM = """
import json, os, sys
from pathlib import Path
output, checkpoints, copying = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
steps = sorted(int(path.name.partition("-")[2]) for path in checkpoints.iterdir())
def seen(copied):
    return {"images": 2, "copies": 2 * copied, "copied": copied, "score": 0.5, "by": "pixels", "part": [0, 0, 1, 1],
            "learnt": 0.1, "p_value": None}
points = [{"name": f"checkpoint-{step}", "step": step, "scale": 1, "digest": "", "diversity": None, "flagged": None,
           "seen": [seen(False), seen(step >= copying)]} for step in (0, *steps)]
output.mkdir(exist_ok=True)
with (output / "runs.jsonl").open("a") as file:
    print(json.dumps([steps, os.nice(0), os.environ.get("RANK")]), file=file)
found = {"about": {}, "pictures": ["a", "b"], "sha256": ["", ""], "alpha": 0.05, "duplicates": [], "notes": [],
         "points": points, "scales": []}
(output / "finetune.json").write_text(json.dumps(found))
sys.exit(steps[-1] >= copying)
"""
"""Stands for `finetune`: checkpoints return the second of two pictures from a step on."""

EMPTY = """
import sys
from pathlib import Path
output = Path(sys.argv[1])
output.mkdir(exist_ok=True)
(output / "finetune.json").touch()
"""
"""Ends as `finetune` does, without a result."""


class Standing(CopyingMeter):
    """A meter with a program that stands for `finetune`."""

    copying_from = 300
    program = PROGRAM

    @property
    def command(self):
        places = (self._output, self._settings.checkpoints, self.copying_from)
        return [sys.executable, "-c", self.program, *map(str, places)]


def measured(meter):
    """(step, copied) of every checkpoint that was measured."""
    return [(point.step, len(point.copied)) for point in meter.course.points[1:]]


@pytest.fixture
def trained(tmp_path):
    """A base, pictures with captions, and a training that has not begun."""
    stable_diffusion().save_pretrained(tmp_path / "base")
    (tmp_path / "pictures").mkdir()
    draws = np.random.default_rng(0)
    for number, caption in enumerate(CAPTIONS):
        Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(
            tmp_path / "pictures" / f"{number}.png"
        )
        (tmp_path / "pictures" / f"{number}.txt").write_text(caption)
    return tmp_path


def meter(kind, folder, **settings):
    settings = {"output": folder / "course", **settings}
    return kind(folder / "run", folder / "base", folder / "pictures", **settings)


def save(folder, step):
    write_lora(folder / "run" / f"checkpoint-{step}", stable_diffusion(), "to_q", seed=step)


def ran(folder):
    """What the program that stands for `finetune` noted, once for every run."""
    return [json.loads(line) for line in (folder / "course" / "runs.jsonl").read_text().splitlines()]


def test_the_process_finds_what_this_process_finds(trained):
    logged = []
    settings = {"images": 1, "steps": CALL["num_inference_steps"], "device": "cpu"}
    aside = meter(CopyingMeter, trained, **settings, log=lambda values, step: logged.append((step, values)))
    save(trained, 10)
    aside.saved(12)
    assert aside.course is None
    found = aside.finish()
    assert [point.step for point in found.points] == [0, 10]
    ((step, values),) = logged
    assert (step, values["copying/step"], values["copying/pictures"]) == (12, 10, 3)
    here = meter(CopyingMeter, trained, **settings, aside=False, output=trained / "here")
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    here.saved(12)
    assert torch.equal(torch.rand(2), expected)
    assert here.finish() is here.course
    # with another number of threads the last digits are others
    for one, other in zip(here.course.points, found.points, strict=True):
        assert (one.name, one.step, one.digest, one.copied) == (other.name, other.step, other.digest, other.copied)
        for mine, its in zip(one.seen, other.seen, strict=True):
            assert (mine.images, mine.seed) == (its.images, its.seed)
            assert mine.learnt == pytest.approx(its.learnt, abs=1e-4)


def test_every_setting_is_a_flag_of_the_command(trained, cryptomnesia):
    (trained / "others").mkdir()
    given = {"held_out": [trained / "others"], "scale": [0.5, 0.7], "images": 3, "thumbnails": False}
    command = meter(CopyingMeter, trained, **given, negative_prompt="-blurred").command
    assert command[1:4] == ["-m", "cryptomnesia", "finetune"]
    assert command[4:] == [
        str(trained / "run"),
        "--negative-prompt=-blurred",
        f"--base={trained / 'base'}",
        f"--data={trained / 'pictures'}",
        f"--held-out={trained / 'others'}",
        "--images=3",
        "--scale=0.5",
        "--scale=0.7",
        "--no-thumbnails",
        f"--output={trained / 'course'}",
    ]
    # the command knows all of them, and comes as far as the empty folder
    code, _, error = cryptomnesia(*command[3:])
    assert code == 2
    assert "others" in error


def test_wrong_settings_are_refused_before_the_training(trained):
    with pytest.raises(UsageError, match=r"unknown setting imags \(did you mean images"):
        meter(CopyingMeter, trained, imags=3)
    with pytest.raises(UsageError, match="images"):
        meter(CopyingMeter, trained, images=0)
    with pytest.raises(UsageError, match=r"no pictures in .*nowhere"):
        meter(CopyingMeter, trained, held_out=trained / "nowhere")


def test_what_is_saved_during_a_measurement_is_measured_after_it(trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    standing = meter(Standing, trained)
    for step in (100, 200):
        save(trained, step)
        standing.saved(step)
    standing.finish()
    # the first run may have seen one of them or both; the second one began after both were saved
    assert [(niceness, rank) for _, niceness, rank in ran(trained)] == [(LOWEST, None)] * 2
    assert ran(trained)[1][0] == [100, 200]
    assert measured(standing) == [(100, 0), (200, 0)]
    assert not standing.copying


def test_a_start_and_every_checkpoint_are_told_once(trained, caplog):
    logged = []
    standing = meter(Standing, trained, log=lambda values, step: logged.append((step, values)))
    for step in (200, 300):
        save(trained, step)
    with caplog.at_level(logging.WARNING, "cryptomnesia"):
        standing.saved(350)
        standing.finish()
        standing.saved(360)
        standing.finish()
    assert measured(standing) == [(200, 0), (300, 1)]
    assert standing.copying
    # once each
    assert caplog.messages == ["copying starts at step 300; keep checkpoint-200"]
    assert logged == [
        (350, {"copying/step": 200, "copying/copied": 0, "copying/pictures": 2, "copying/share": 0.0}),
        (350, {"copying/step": 300, "copying/copied": 1, "copying/pictures": 2, "copying/share": 0.5}),
    ]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; print('so far, so good', file=sys.stderr); sys.exit('error: disk full')", "error: disk full"),
        ("import os; os._exit(9)", "exit code 9"),
        ("pass", "exit code 0"),
        (EMPTY, "no course in"),
    ],
)
def test_a_measurement_that_fails_costs_a_warning_and_no_checkpoint(trained, caplog, program, why):
    standing = meter(Standing, trained)
    standing.program = program
    save(trained, 100)
    with caplog.at_level(logging.WARNING, "cryptomnesia"):
        standing.saved(100)
        assert standing.finish() is None
    (message,) = caplog.messages
    assert "the training goes on" in message
    assert why in message
    standing.program = PROGRAM
    save(trained, 200)
    standing.saved(200)
    standing.finish()
    assert measured(standing) == [(100, 0), (200, 0)]


def test_a_failure_in_this_process_costs_a_warning_too(trained, caplog):
    here = meter(CopyingMeter, trained, aside=False)
    (trained / "run").mkdir()
    with caplog.at_level(logging.WARNING, "cryptomnesia"):
        here.saved(100)
    assert here.course is None
    assert "the training goes on (no checkpoints in" in caplog.text


def test_a_loop_of_accelerate_logs_through_its_trackers(trained):
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker, values = "kept", False, None, []

        def store_init_configuration(self, values):
            pass

        def log(self, values, step, **_):
            self.values.append((step, values))

    accelerator = Accelerator(cpu=True, log_with=Tracker())
    accelerator.init_trackers("lora")
    standing = meter(Standing, trained, log=accelerator.log)
    for step in (100, 300):
        save(trained, step)
        standing.saved(step)
        standing.finish()
    accelerator.end_training()
    assert [(step, values["copying/copied"]) for step, values in Tracker.values] == [(100, 0), (300, 1)]


@pytest.fixture
def trainer(trained):
    """A function that makes a Trainer which saves LoRAs at every hundredth step, and its meter."""
    from transformers import Trainer, TrainingArguments

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(1, 1)

        def forward(self, x):
            return {"loss": self.line(x).square().mean()}

    class Saving(Trainer):
        def _save(self, output_dir=None, state_dict=None):
            write_lora(output_dir, stable_diffusion(), "to_q", seed=1)

        def training_step(self, *arguments, **keywords):
            # a step takes a while, else a training would be over before the first measurement
            time.sleep(0.002)
            return super().training_step(*arguments, **keywords)

    def make(**settings):
        arguments = TrainingArguments(
            output_dir=str(trained / "run"),
            max_steps=600,
            save_steps=100,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            per_device_train_batch_size=1,
            save_only_model=True,
        )
        made = Saving(Line(), arguments, train_dataset=[{"x": torch.ones(1)}] * 4)
        standing = meter(Standing, trained)
        made.add_callback(CopyingCallback(standing, made, **settings))
        return made, standing

    return make


def test_a_trainer_logs_and_goes_on(trainer):
    made, standing = trainer()
    made.train()
    assert made.state.global_step == 600
    assert measured(standing) == [(100, 0), (200, 0), (300, 1), (400, 1), (500, 1), (600, 1)]
    history = made.state.log_history
    assert [entry["copying/copied"] for entry in history if "copying/copied" in entry] == [0, 0, 1, 1, 1, 1]
    # logging the one does not suppress the other
    assert sum("loss" in entry for entry in history) == 600


def test_a_trainer_stops_when_copying_starts(trainer):
    made, standing = trainer(stop_when_copying=True)
    made.train()
    assert standing.course.start.step == 300
    assert 300 <= made.state.global_step < 600


def test_only_one_process_of_several_measures(trainer, trained):
    made, standing = trainer()
    callback = made.callback_handler.callbacks[-1]
    made.state.is_world_process_zero = False
    made.state.global_step = 100
    for event in (callback.on_save, callback.on_step_end, callback.on_train_end):
        event(made.args, made.state, made.control)
    assert standing.course is None
    assert not (trained / "course").exists()
