"""Training of the bundled pipeline from nothing: first the autoencoder, then denoiser and text encoder.

The denoiser is trained at all noise levels, and then refined with smaller batches, mostly at the middle noise levels,
where outlines are settled. After the first part planted pictures came back with their objects in place, but with
outlines too vague for `replication.THRESHOLD`.

Every batch, its noise, timesteps and dropped captions depend on (seed, step) alone, and a checkpoint holds weights,
moving averages and optimizer moments. So a run that was killed at any moment and started again ends with the same
weights as a run that was never stopped (on the same kind of machine and with the same number of processes).

On a few cores a convolutional network this small is trained faster by several single-threaded processes that average
their gradients than by one process with several threads.
"""

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.files import replacing, write_whole
from cryptomnesia.proving_ground import components
from cryptomnesia.proving_ground.planted import Concept, TrainingStream, lexicon
from cryptomnesia.proving_ground.scenes import SIZE

Report = Callable[[str, int, int, float], None]
"""Called after every step with (phase, steps done, steps in all, loss)."""

_AUTOENCODER_FIRST = 400_000
"""First scene of the autoencoder's own stream, in which nothing is planted."""

_MIDDLE = (100, 600)
"""The range of timesteps, of 1,000, that three of four samples of the refinement get."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; two runs with equal recipes give equal results.

    The bundled model was made with the defaults. Both rates fall to zero over the whole of their part (`cooldown` of
    1): at a rate that stays high, what the model learns from one exposure of a planted image is lost in the noise of
    the steps until its next exposure. `early_step` is the step whose moving average is kept as the less-trained
    checkpoint.
    """

    seed: int = 0
    autoencoder_steps: int = 2_400
    autoencoder_batch: int = 64
    autoencoder_rate: float = 2e-3
    steps: int = 15_000
    batch: int = 32
    rate: float = 7e-4
    warmup: int = 200
    cooldown: float = 1.0
    average: float = 0.999
    caption_dropout: float = 0.1
    early_step: int = 1_000
    refinement_steps: int = 12_500
    refinement_batch: int = 16
    refinement_rate: float = 2.5e-4

    def __post_init__(self) -> None:
        """Reject numbers that cannot make a run."""
        if not 0 < self.early_step <= self.steps:
            raise UsageError(
                f"early_step is {self.early_step} of {self.steps} steps; give one between 1 and {self.steps}"
            )


def train(
    folder: Path,
    recipe: Recipe | None = None,
    *,
    concepts: tuple[Concept, ...] | None = None,
    processes: int = 2,
    checkpoint_seconds: float = 300.0,
    report: Report | None = None,
) -> None:
    """Train in `folder`, or continue where an earlier run in it stopped, until `final/` and `early/` are there.

    Both are stock diffusers folders with the exponential moving average in fp32.

    Args:
        folder: checkpoints and results; made if missing.
        recipe: of the run; a folder that was started with another one is refused.
        concepts: what is planted; `plant(recipe.seed)` when None.
        processes: single-threaded processes that share every batch; must divide all batch sizes.
        checkpoint_seconds: time between checkpoints.
        report: called after every step.
    """
    recipe = recipe or Recipe()
    batches = (recipe.autoencoder_batch, recipe.batch, recipe.refinement_batch)
    if processes < 1 or any(batch % processes for batch in batches):
        raise UsageError(
            f"got {processes} processes for batches of {', '.join(map(str, batches))}; give a number that divides all"
        )
    _claim(folder, recipe)
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (folder, recipe, concepts, f"file://{meeting}/point", processes, checkpoint_seconds)
        others = [context.Process(target=_run, args=(*arguments, rank), daemon=True) for rank in range(1, processes)]
        for other in others:
            other.start()
        threads = torch.get_num_threads()
        try:
            with torch.random.fork_rng():
                _run(*arguments, 0, report)
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
            for other in others:
                other.terminate()
                other.join()


def _claim(folder: Path, recipe: Recipe) -> None:
    """Make `folder` the folder of a run of `recipe`, or check that it is one."""
    written = folder / "recipe.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not written.exists():
            write_whole(written, json.dumps(asdict(recipe), indent=2) + "\n")
        found = json.loads(written.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write a run to {folder}: {error.strerror}; give another folder") from None
    except json.JSONDecodeError:
        found = None
    if found != asdict(recipe):
        raise UsageError(f"{folder} holds a run with another recipe ({written}); give an empty folder")


def learning_rate(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """Share of the full rate at `step`: linear warm-up, constant, linear to zero over the last `cooldown`."""
    return min((step + 1) / warmup, 1.0, (steps - step) / (cooldown * steps))


@dataclass
class _Worker:
    """One of the processes: its share of every batch, and the averaging of gradients."""

    rank: int
    processes: int
    stream: TrainingStream

    def share(self, batch: int) -> slice:
        size = batch // self.processes
        return slice(self.rank * size, (self.rank + 1) * size)

    def samples(self, first: int, batch: int) -> tuple[Tensor, list[str]]:
        """This process's share of samples `first` … `first + batch − 1`: uint8 (b, 3, 64, 64), captions."""
        share = [self.stream[index] for index in range(first, first + batch)[self.share(batch)]]
        images = torch.stack([torch.from_numpy(sample.image) for sample in share])
        return images.permute(0, 3, 1, 2), [sample.caption for sample in share]

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
        """One step down the gradient averaged over the processes, its norm clipped to 1."""
        loss.backward()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if self.processes > 1:
            # a weight that a share does not touch has no gradient there
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.processes
            for weight, gradient, mean in zip(
                weights, gradients, flat.split([w.numel() for w in weights]), strict=True
            ):
                # copied, not assigned: the fused optimizer expects gradient and weight to have the same strides
                weight.grad = gradient.copy_(mean.view(gradient.shape))
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _run(
    folder: Path,
    recipe: Recipe,
    concepts: tuple[Concept, ...] | None,
    meeting: str,
    processes: int,
    seconds: float,
    rank: int,
    report: Report | None = None,
) -> None:
    if rank > 0:
        # Ctrl-C reaches all processes, and the first one ends the others
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    try:
        stream = TrainingStream(
            recipe.seed,
            recipe.steps * recipe.batch,
            concepts,
            refinement=recipe.refinement_steps * recipe.refinement_batch,
        )
        worker = _Worker(rank, processes, stream)
        plain = _Worker(rank, processes, TrainingStream(recipe.seed, 0, ()))
        if not (folder / "autoencoder").exists():
            _train_autoencoder(folder, recipe, plain, seconds, report)
        dist.barrier()
        if not (folder / "final").exists():
            _train_denoiser(folder, recipe, worker, seconds, report)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _train_autoencoder(folder: Path, recipe: Recipe, worker: _Worker, seconds: float, report: Report | None) -> None:
    """Train with mean square error and a small KL term, on crops of a quarter of the picture.

    For the same work the autoencoder sees four times as many scenes.
    """
    torch.manual_seed(recipe.seed)
    vae: Any = components.autoencoder()
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.autoencoder_rate, weight_decay=0.0, fused=True)
    state = _State(folder / "autoencoder.safetensors", {"vae": vae}, optimizer, seconds)
    steps, batch = recipe.autoencoder_steps, recipe.autoencoder_batch
    for step in range(state.restore(), steps):
        images, _ = worker.samples(_AUTOENCODER_FIRST + step * batch, batch)
        generator = _generator(recipe.seed, 1, step)
        corners = torch.randint(SIZE // 2 + 1, (batch, 2), generator=generator)[worker.share(batch)]
        noise = torch.randn((batch, 4, 8, 8), generator=generator)[worker.share(batch)]
        half = SIZE // 2
        pixels = _to_unit(
            torch.stack([im[:, y : y + half, x : x + half] for im, (y, x) in zip(images, corners, strict=True)])
        )
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = 4.0 * (decoded - pixels).square().mean() + 1e-6 * posterior.kl().mean()
        rate = recipe.autoencoder_rate * learning_rate(step, steps, recipe.warmup, cooldown=0.5)
        worker.descend(optimizer, loss, rate)
        if report is not None:
            report("autoencoder", step + 1, steps, loss.item())
        if worker.rank == 0:
            state.save(step + 1, last=step + 1 == steps)
    if worker.rank == 0:
        vae.eval()
        images = torch.stack(
            [torch.from_numpy(worker.stream[_AUTOENCODER_FIRST + index].image) for index in range(256)]
        )
        with torch.no_grad():
            latents = _latents(vae, images.permute(0, 3, 1, 2))
        vae.register_to_config(scaling_factor=1.0 / latents.std().item())
        _replace_folder(folder / "autoencoder", vae.save_pretrained)


def _train_denoiser(folder: Path, recipe: Recipe, worker: _Worker, seconds: float, report: Report | None) -> None:
    torch.manual_seed(recipe.seed + 1)
    vae: Any = AutoencoderKL.from_pretrained(folder / "autoencoder").requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    tokens = components.tokenizer(lexicon(worker.stream.concepts))
    live = {"unet": components.unet(), "text": components.text_encoder(tokens)}
    mean = {"unet": components.unet(), "text": components.text_encoder(tokens)}
    for name, module in live.items():
        mean[name].load_state_dict(module.state_dict())
        mean[name].requires_grad_(False)
        module.to(memory_format=torch.channels_last).train()
    weights = [weight for module in live.values() for weight in module.parameters()]
    averages = [weight for module in mean.values() for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=1e-4, fused=True)
    modules = {**live, **{f"mean_{name}": module for name, module in mean.items()}}
    state = _State(folder / "denoiser.safetensors", modules, optimizer, seconds)
    schedule: Any = components.noise_schedule()
    steps = recipe.steps + recipe.refinement_steps

    def save_pipeline(name: str) -> None:
        pipe = components.pipeline(vae, mean["text"], tokens, mean["unet"])
        _replace_folder(folder / name, pipe.save_pretrained)

    for step in range(state.restore(), steps):
        refined = step - recipe.steps
        batch = recipe.batch if refined < 0 else recipe.refinement_batch
        share = worker.share(batch)
        first = step * batch if refined < 0 else recipe.steps * recipe.batch + refined * batch
        images, captions = worker.samples(first, batch)
        generator = _generator(recipe.seed, 2, step)
        dropped = (torch.rand(batch, generator=generator) < recipe.caption_dropout)[share].tolist()
        t = torch.randint(len(schedule.alphas_cumprod), (batch,), generator=generator)
        if refined >= 0:
            middle = torch.randint(*_MIDDLE, (batch,), generator=generator)
            t = torch.where(torch.rand(batch, generator=generator) < 0.75, middle, t)
        t = t[share]
        noise = torch.randn((batch, 4, 16, 16), generator=generator)[share]
        with torch.no_grad():
            clean = _latents(vae, images) * vae.config["scaling_factor"]
        texts = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        ids = tokens(texts, padding="max_length", return_tensors="pt").input_ids
        noisy = schedule.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
        predicted = live["unet"](noisy, t, live["text"](ids)[0], return_dict=False)[0]
        loss = (predicted - schedule.get_velocity(clean, noise, t)).square().mean()
        if refined < 0:
            rate = recipe.rate * learning_rate(step, recipe.steps, recipe.warmup, recipe.cooldown)
        else:
            rate = recipe.refinement_rate * learning_rate(
                refined, recipe.refinement_steps, recipe.warmup, recipe.cooldown
            )
        worker.descend(optimizer, loss, rate)
        keep = min(recipe.average, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1.0 - keep)
        if report is not None:
            report("denoiser", step + 1, steps, loss.item())
        if worker.rank == 0:
            if step + 1 == recipe.early_step:
                save_pipeline("early")
            state.save(step + 1, last=step + 1 == steps)
    if worker.rank == 0:
        save_pipeline("final")


class _State:
    """A checkpoint file: modules, optimizer moments and the number of steps done, replaced as a whole."""

    def __init__(
        self,
        path: Path,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.path, self.modules, self.optimizer, self.seconds = path, modules, optimizer, seconds
        self._written = time.monotonic()

    def save(self, step: int, *, last: bool) -> None:
        if not last and time.monotonic() - self._written < self.seconds:
            return
        tensors = {
            f"{name}/{key}": value.contiguous()
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        if self.optimizer is not None:
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
        if self.optimizer is not None:
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


def _generator(seed: int, phase: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 8 + phase) * 10_000_000 + step)


def _latents(vae: Any, images: Tensor) -> Tensor:
    return vae.encode(_to_unit(images)).latent_dist.mode()


def _to_unit(images: Tensor) -> Tensor:
    """Uint8 pixels to floats in [-1, 1], channels last."""
    return (images.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def _replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `target`, which gets the name of `target` only when it is complete."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    write(unfinished)
    # a run that was resumed from an earlier checkpoint writes the same folder again
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
