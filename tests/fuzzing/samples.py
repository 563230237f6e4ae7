"""Valid files of every kind that the library reads, made once."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from safetensors import safe_open

from cryptomnesia import audit
from cryptomnesia.auditing.store import CALIBRATION
from cryptomnesia.matching import ImageIndex, Tiles
from cryptomnesia.testing.miniatures import stable_diffusion

PROMPTS = ["a blue star", "a green ring, thick", 'a "red" bar', "ein grüner Würfel", "赤い円"]


@dataclass(frozen=True)
class Samples:
    """Valid files in a folder.

    Attributes:
        folder: of the files.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Samples":
        """Make the files: a model, a finished audit of five prompts with its calibration, pictures and their index."""
        stable_diffusion().save_pretrained(folder / "tiny")
        (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
        (folder / "references.txt").write_text("\n".join(f"a red circle {number}" for number in range(102)))
        (folder / "pictures").mkdir()
        draw = np.random.default_rng(0)
        for number in range(6):
            made = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(made).save(folder / "pictures" / f"{number}.png")
        ImageIndex.build(folder / "pictures", folder / "index", Tiles(), shard=3)
        audit(
            str(folder / "tiny"),
            folder / "prompts.txt",
            folder / "run",
            references=folder / "references.txt",
            steps=3,
            guidance=2.0,
            fpr=0.5,
            batch_size=34,
            mitigate=False,
        )
        return cls(folder)

    @property
    def run(self) -> Path:
        """The finished audit."""
        return self.folder / "run"

    @property
    def index(self) -> Path:
        """The index of the pictures."""
        return self.folder / "index"

    @property
    def calibration(self) -> Path:
        """The calibration of the audit."""
        return self.run / CALIBRATION

    @cached_property
    def run_json(self):
        """What run.json holds."""
        return json.loads((self.run / "run.json").read_text(encoding="utf-8"))

    @cached_property
    def rows(self):
        """Stage → rows of its only batch."""
        return {stage: pq.ParquetFile(self.batch(stage)).read().to_pylist() for stage in ("images", "scores")}

    def batch(self, stage: str) -> Path:
        """The file of the only batch of a stage."""
        return self.run / stage / "00000.parquet"

    @cached_property
    def parts(self):
        """Header and tensors of the calibration."""
        with safe_open(self.calibration, framework="pt") as file:
            return json.loads(file.metadata()["about"]), {key: file.get_tensor(key) for key in file.keys()}

    @cached_property
    def picture(self):
        """One of the pictures."""
        with Image.open(self.folder / "pictures" / "0.png") as file:
            return file.convert("RGB")
