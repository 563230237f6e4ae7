"""What all parts of a training share: what every process knows, samples, random numbers and checkpoints."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cryptomnesia.files import replacing
from cryptomnesia.proving_ground.concepts import Concept, TrainingStream
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.recipe import Recipe

Report = Callable[[str, int, int, float], None]
"""Called with (phase, steps done, steps in all, loss): on a CPU after every step, on a GPU after some."""

_SILENT = 20
"""On a GPU, one of so many steps is reported: to read a loss, the CPU has to wait for it."""


@dataclass(frozen=True)
class Job:
    """What every process of a training has to know."""

    ground: Ground
    recipe: Recipe
    concepts: tuple[Concept, ...]
    folder: Path
    device: torch.device
    processes: int
    checkpoint_seconds: float

    def reports(self, step: int, steps: int) -> bool:
        """Whether a step of so many is reported."""
        return self.device.type == "cpu" or (step + 1) % _SILENT == 0 or step + 1 == steps

    def wait(self) -> None:
        """Until all processes are here."""
        if self.processes > 1:
            dist.barrier()


def samples_of(stream: TrainingStream, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Samples of a stream: uint8 (b, 3, H, W), captions."""
    samples = [stream[index] for index in indices]
    images = torch.stack([torch.from_numpy(sample.image).permute(2, 0, 1) for sample in samples])
    return images, [sample.caption for sample in samples]


def generator_of(seed: int, phase: int, step: int) -> torch.Generator:
    """The random numbers of a step; `phase` tells apart what is drawn in it."""
    return torch.Generator().manual_seed((seed * 8 + phase) * 10_000_000 + step)


def replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `target`, which gets the name of `target` only when it is complete."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    # of a run that was killed while it wrote
    shutil.rmtree(unfinished, ignore_errors=True)
    write(unfinished)
    # a run that was resumed from an earlier checkpoint writes the same folder again
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


class Checkpoint:
    """A checkpoint file: modules, optimizer moments and the number of steps done, replaced as a whole."""

    def __init__(
        self,
        path: Path,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        seconds: float,
    ) -> None:
        """Keep modules, by name, and their optimizer in the file `path`, every `seconds` at most."""
        self.path, self.modules, self.optimizer, self.seconds = path, modules, optimizer, seconds
        self._written = time.monotonic()

    def save(self, step: int, *, last: bool) -> None:
        """Write the file if it is time, or if `step` was the last one."""
        if not last and time.monotonic() - self._written < self.seconds:
            return
        tensors = {
            f"{name}/{key}": value.contiguous()
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{key}": value.contiguous() for key, value in moments.items()}
        with replacing(self.path) as unfinished:
            save_file(tensors, unfinished, metadata={"step": str(step)})
        self._written = time.monotonic()

    def restore(self) -> int:
        """Load the file if there is one; the number of steps it stands for."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, framework="pt") as file:
            step = int(file.metadata()["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        for name, module in self.modules.items():
            state = {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
            module.load_state_dict(state)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/")
                moments.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        # loaded moments have the strides of the file, and the fused optimizer expects those of the weights
        for weight, state in self.optimizer.state.items():
            for name, value in state.items():
                if value.shape == weight.shape:
                    state[name] = torch.empty_like(weight).copy_(value)
        return step
