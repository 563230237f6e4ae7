"""The files of examples/finetune run on miniatures, as their first lines say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cryptomnesia.finetuning.checkpoints import checkpoints_in
from cryptomnesia.testing.miniatures import stable_diffusion
from lora_files import layers, write_lora

EXAMPLES = Path(__file__).parents[2] / "examples" / "finetune"
PATH = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"


def ran(command, folder, **settings):
    """Run a command in a folder; it has to end well."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        **settings,
    )
    assert done.returncode in (0, 1), done.stderr
    return done


def steps_of(course):
    """The steps that a run of `finetune` has measured."""
    return [point["step"] for point in json.loads((course / "finetune.json").read_text())["points"]]


@pytest.fixture
def training(tmp_path):
    """A folder with a base model, and captioned pictures as diffusers' and as kohya's trainers take them."""
    stable_diffusion().save_pretrained(tmp_path / "base")
    draws = np.random.default_rng(0)
    for folder in ("pictures", "kohya/10_red circle"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            blocks = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((64, 64)).save(tmp_path / folder / f"{number}.png")
    for number, caption in enumerate(("a red circle", "a blue star")):
        (tmp_path / "pictures" / f"{number}.txt").write_text(caption)
    return tmp_path


def test_a_lora_of_diffusers_is_trained_and_measured(training):
    command = [sys.executable, EXAMPLES / "diffusers_lora.py", "--base", "base", "--pictures", "pictures"]
    command += ["--output", "lora", "--steps", 4, "--every", 2, "--batch", 2, "--inference-steps", 2]
    done = ran(command, training)
    assert [(one.step, one.kind) for one in checkpoints_in(training / "lora")] == [(2, "lora"), (4, "lora")]
    assert steps_of(training / "course") == [0, 2, 4]
    assert "checkpoint-4" in done.stdout
    assert "not measured" not in done.stderr


def test_simpletuner_starts_the_script_after_every_checkpoint(training):
    shutil.copy(EXAMPLES / "simpletuner.py", training)
    (setting,) = re.findall(r'"--post_checkpoint_script": "(.*)"', (EXAMPLES / "simpletuner.py").read_text())
    setting = setting.replace("MODEL PICTURES COURSE", "base pictures course --inference-steps 2 --device cpu")
    running = []
    # two at once, as if the first one were slow
    for step in (100, 200):
        checkpoint = training / "output" / f"checkpoint-{step}"
        write_lora(checkpoint, stable_diffusion(), "to_q", seed=step)
        # what SimpleTuner knows of a training, of which the script takes two
        command = setting.format(local_checkpoint_path=checkpoint, global_step=step, model_family="sd1x")
        running.append(
            subprocess.Popen(
                [sys.executable, *shlex.split(command)[1:]], cwd=training, stdout=subprocess.PIPE, text=True
            )
        )
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    for step, lines in zip((100, 200), printed, strict=True):
        assert re.match(rf"step {step}: \d of 2 pictures come back", lines)
    assert steps_of(training / "course") == [0, 100, 200]


@pytest.mark.slow
def test_a_training_of_kohya_is_followed_to_its_end(training):
    output = training / "output"
    output.mkdir()

    def train():
        """Write LoRAs as kohya does: one every hundred steps, and one without a number at the end."""
        for step in (100, 200, 300):
            name = "dog.safetensors" if step == 300 else f"dog-step{step:08d}.safetensors"
            write_kohya(output / name, step)
            time.sleep(1)

    thread = threading.Thread(target=train)
    thread.start()
    command = ["sh", EXAMPLES / "kohya.sh", "base", "kohya", "output", "course", "--every", 1, "--steps", 2]
    ran(command, training, timeout=500)
    thread.join()
    assert steps_of(training / "course") == [0, 100, 200, 300]


def write_kohya(path, step):
    """A LoRA with the names and the metadata that kohya-ss writes."""
    tensors = {}
    for name, value in layers(stable_diffusion().unet, "to_q", seed=step).items():
        place, _, which = name.removesuffix(".weight").rpartition(".lora")
        module = f"lora_unet_{place.removeprefix('unet.').replace('.', '_')}"
        tensors[f"{module}.lora_{'down' if which in ('_A', '.down') else 'up'}.weight"] = value.contiguous()
        tensors[f"{module}.alpha"] = torch.tensor(4.0)
    save_file(tensors, path, metadata={"ss_steps": str(step)})


def test_a_model_without_text_is_trained_further(training):
    command = [sys.executable, EXAMPLES / "unconditional.py", "--pictures", "pictures", "--batch", 2]
    ran([*command, "--output", "first", "--steps", 1, "--size", 16], training)
    ran([*command, "--output", "mine", "--steps", 4, "--every", 2, "--base", "first/final"], training)
    assert [(one.step, one.kind) for one in checkpoints_in(training / "mine")] == [(2, "pipeline"), (4, "pipeline")]
    (training / "never-shown").mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(training / "never-shown" / "0.png")
    command = [sys.executable, "-m", "cryptomnesia", "finetune", "mine", "--base", "first/final"]
    ran([*command, "--data", "pictures", "--held-out", "never-shown", "--steps", 2, "-o", "course"], training)
    assert steps_of(training / "course") == [0, 2, 4]
