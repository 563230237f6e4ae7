"""A random miniature in a folder, as the commands load it."""

import os
import subprocess
import sys

import pytest

from cryptomnesia import Calibration, calibrate, load_pipeline
from cryptomnesia.testing.miniatures import stable_diffusion, unconditional

CALL = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="session")
def setup():
    """The options of the calls that `calibration` is for."""
    return ["--steps", "2", "--guidance", "2"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with the miniature in `tiny`, one without captions in `plain`, and reference prompts."""
    folder = tmp_path_factory.mktemp("model")
    stable_diffusion().save_pretrained(folder / "tiny")
    unconditional().save_pretrained(folder / "plain")
    (folder / "reference.txt").write_text("\n".join(f"a red circle {number}" for number in range(102)))
    return folder


@pytest.fixture(scope="session")
def calibration_file(model):
    """A calibration of `tiny`."""
    pipe = load_pipeline(str(model / "tiny"))
    fitted = calibrate(pipe, model / "reference.txt", batch_size=34, **CALL)
    fitted.save(model / "made.safetensors")
    return model / "made.safetensors"


@pytest.fixture(scope="session")
def fitted(calibration_file):
    """The calibration itself."""
    return Calibration.load(calibration_file)


@pytest.fixture(scope="session")
def cryptomnesia_once():
    """Run the command line for a fixture of a whole module: (exit code, standard output, standard error)."""

    def run(*arguments):
        ended = subprocess.run(
            [sys.executable, "-m", "cryptomnesia", *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return ended.returncode, ended.stdout, ended.stderr

    return run
