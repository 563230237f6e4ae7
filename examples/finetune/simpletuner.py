"""Measure every checkpoint of a SimpleTuner training, as its script after checkpoints.

Write into SimpleTuner's `config.json`, with paths and model of your own:

    "--post_checkpoint_script": "python simpletuner.py {local_checkpoint_path} {global_step} MODEL PICTURES COURSE"

SimpleTuner puts the folder of the checkpoint and the step in the place of the words in braces, starts the script when
the checkpoint is on the disk, and does not wait for it. `COURSE/index.html` has the curve after every checkpoint.
"""

import argparse
import os
import time
from pathlib import Path

from filelock import FileLock

from cryptomnesia import finetune


def main() -> None:
    """Measure what the training has saved so far."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path, help="{local_checkpoint_path}")
    parser.add_argument("step", type=int, help="{global_step}")
    parser.add_argument("model", help="the model that the training began from")
    parser.add_argument("pictures", type=Path, help="folder of the training pictures with their captions")
    parser.add_argument("course", type=Path, help="folder of the measurements")
    parser.add_argument("--inference-steps", type=int, help="steps in which an image is made")
    parser.add_argument("--device", help="of the measurement, cpu or cuda:1 for instance")
    given = parser.parse_args()
    os.nice(19)
    began = time.monotonic()
    # the script of the checkpoint before may still be measuring
    with FileLock(f"{given.course}.lock"):
        course = finetune(
            given.checkpoint.parent,
            given.model,
            given.pictures,
            output=given.course,
            device=given.device,
            num_inference_steps=given.inference_steps,
        )
    copied = {point.step: len(point.copied) for point in course.points}
    found = f"{copied.get(given.step, 0)} of {len(course.pictures)} pictures come back"
    print(f"step {given.step:,}: {found} ({time.monotonic() - began:.0f} s)")
    if course.start is not None and course.before is not None:
        print(f"copying starts at step {course.start.step:,}; keep {course.before.name}")


if __name__ == "__main__":
    main()
