"""Training of a ground's pipeline: from nothing, first the autoencoder, then denoiser and text encoder.

The denoiser is trained in the phases of the recipe. In the first, all noise levels are alike. In later ones most
samples have the middle noise levels, where outlines are settled.

Every batch, its noise, timesteps and dropped captions depend on (seed, step) alone, and a checkpoint holds weights,
moving averages and optimizer moments. So a run that was killed at any moment and started again ends with the same
weights as a run that was never stopped (on the same kind of CPU and with the same number of processes, among which
captions are exchanged). A GPU may sum in another order each time, so there the weights differ in their last digits.

On a few cores a convolutional network this small is trained faster by several single-threaded processes that average
their gradients than by one process with several threads.
"""

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.files import replacing, write_whole
from cryptomnesia.pipelines.loading import chosen_device
from cryptomnesia.proving_ground.autoencoder import LatentNetworks, latents
from cryptomnesia.proving_ground.concepts import Concept, Sample, TrainingStream
from cryptomnesia.proving_ground.descent import Gradient, Worker, drawn
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.learning import Batch, Inputs, Learner, half, layout, to_unit
from cryptomnesia.proving_ground.recipe import Recipe, learning_rate

Report = Callable[[str, int, int, float], None]
"""Called with (phase, steps done, steps in all, loss): on a CPU after every step, on a GPU after some."""

_SILENT = 20
"""Steps of a GPU of which one is reported: to read a loss, the CPU has to wait for it."""

_AUTOENCODER_FIRST = 400_000
"""First sample of the autoencoder's training, from a stream in which nothing is planted."""


@dataclass(frozen=True)
class _Job:
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


def train(
    ground: Ground,
    folder: Path,
    recipe: Recipe | None = None,
    *,
    concepts: tuple[Concept, ...] | None = None,
    autoencoder: Path | None = None,
    device: str | None = None,
    processes: int = 2,
    checkpoint_seconds: float = 300.0,
    report: Report | None = None,
) -> None:
    """Train in `folder`, or continue where an earlier run in it stopped, until `final/` is there.

    Beside it are `early/` and `step-N/`, the less-trained checkpoints of the recipe. All are stock diffusers folders
    with the exponential moving average in fp32.

    Args:
        ground: the proving ground.
        folder: checkpoints and results; made if missing.
        recipe: of the run, the ground's by default; a folder that was started with another one is refused.
        concepts: what is planted; everything that belongs to the recipe's seed when None.
        autoencoder: folder of a trained one (`autoencoder` of a run, `pipeline/vae` of a bundle), which is copied into
            the run; by default one is trained.
        device: of the networks, as PyTorch names it; a GPU if there is one when None.
        processes: on a CPU, single-threaded processes that share every batch; must divide all batch sizes. A GPU takes
            one.
        checkpoint_seconds: time between checkpoints.
        report: called while the networks are trained.

    Raises:
        UsageError: if the folder is of another run or cannot be written to, or if the number of processes or the
            autoencoder does not fit, or if there is no such device.
    """
    recipe = recipe or ground.recipe
    chosen = torch.device(chosen_device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    processes = processes if chosen.type == "cpu" else 1
    batches = {phase.batch for phase in recipe.phases}
    batches |= {recipe.autoencoder_batch} if ground.networks.autoencoder else set()
    if processes < 1 or any(batch % processes for batch in batches):
        sizes = ", ".join(map(str, sorted(batches)))
        raise UsageError(f"got {processes} processes for batches of {sizes}; give a number that divides all")
    _claim(folder, ground, recipe, None if autoencoder is None else _digest(autoencoder, ground))
    if autoencoder is not None and not (folder / "autoencoder").exists():
        _replace_folder(folder / "autoencoder", partial(shutil.copytree, autoencoder))
    planted = ground.plant(recipe.seed) if concepts is None else concepts
    job = _Job(ground, recipe, planted, folder, chosen, processes, checkpoint_seconds)
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (job, f"file://{meeting}/point")
        others = [context.Process(target=_run, args=(*arguments, rank), daemon=True) for rank in range(1, processes)]
        for other in others:
            other.start()
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        if chosen.type == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            # cuDNN is switched off by these flags unless they say otherwise
            with torch.random.fork_rng(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
                _run(*arguments, 0, report)
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.set_flush_denormal(False)
            for other in others:
                other.terminate()
                other.join()


def _claim(folder: Path, ground: Ground, recipe: Recipe, autoencoder: str | None) -> None:
    """Make `folder` the folder of a run of `recipe`, with a given autoencoder or not, or check that it is one."""
    written = folder / "recipe.json"
    given = {} if autoencoder is None else {"autoencoder": autoencoder}
    settings = {"ground": ground.name, **ground.settings(), **given, **asdict(recipe)}
    text = json.dumps(settings, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not written.exists():
            write_whole(written, text)
        found = written.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write a run to {folder}: {error.strerror}; give another folder") from None
    if found != text:
        raise UsageError(f"{folder} holds a run with another recipe ({written}); give an empty folder")


def _digest(autoencoder: Path, ground: Ground) -> str:
    """The digest of an autoencoder's weights; what is none, or is not like the ground's, is refused."""
    networks = ground.networks
    if not isinstance(networks, LatentNetworks):
        raise UsageError(f"{ground.name} trains no autoencoder, so it takes none over; leave it out")
    try:
        found = json.loads((autoencoder / "config.json").read_text(encoding="utf-8"))
        digest = sha256((autoencoder / SAFETENSORS_WEIGHTS_NAME).read_bytes()).hexdigest()
    except (OSError, ValueError):
        raise UsageError(f"{autoencoder} holds no autoencoder; give the folder with its config.json") from None
    expected = {"latent_channels": networks.channels, "block_out_channels": [*networks.autoencoder_widths]}
    if wrong := [f"{key} {found.get(key)}, not {value}" for key, value in expected.items() if found.get(key) != value]:
        raise UsageError(f"the autoencoder in {autoencoder} has {', '.join(wrong)}; give one of a ground like this")
    return digest


def _run(job: _Job, meeting: str, rank: int, report: Report | None = None) -> None:
    if rank > 0:
        # Ctrl-C reaches all processes, and the first one ends the others
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if job.processes > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=job.processes)
    try:
        worker = Worker(rank, job.processes)
        if job.ground.networks.autoencoder and not (job.folder / "autoencoder").exists():
            _train_autoencoder(job, worker, report)
        _wait(job)
        if not (job.folder / "final").exists():
            _train_denoiser(job, worker, report)
        _wait(job)
    finally:
        if job.processes > 1:
            dist.destroy_process_group()


def _wait(job: _Job) -> None:
    """Until all processes are here."""
    if job.processes > 1:
        dist.barrier()


def _samples(stream: TrainingStream, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Samples of a stream: uint8 (b, 3, H, W), captions."""
    samples = [stream[index] for index in indices]
    return torch.stack([_image(sample) for sample in samples]), [sample.caption for sample in samples]


def _image(sample: Sample) -> Tensor:
    """The picture of a sample, uint8 (3, H, W)."""
    return torch.from_numpy(sample.image).permute(2, 0, 1)


def _train_autoencoder(job: _Job, worker: Worker, report: Report | None) -> None:
    """Train the autoencoder, and then its decoder further if the recipe says so."""
    recipe, whole = job.recipe, job.folder / "autoencoder"
    networks = job.ground.networks
    assert isinstance(networks, LatentNetworks)
    first = job.folder / "autoencoder-first" if recipe.decoder_steps else whole
    if not first.exists():
        torch.manual_seed(recipe.seed)
        vae: Any = networks.vae()
        _descend_autoencoder(job, worker, report, vae, [vae], "autoencoder", range(recipe.autoencoder_steps), 0.5)
        if worker.rank == 0:
            vae.eval()
            images, _ = _samples(_plain(job), range(_AUTOENCODER_FIRST, _AUTOENCODER_FIRST + 256))
            with torch.no_grad():
                spread = latents(vae, images.to(job.device)).std().item()
            vae.register_to_config(scaling_factor=1.0 / spread)
            _replace_folder(first, vae.save_pretrained)
        _wait(job)
    if first != whole:
        vae = AutoencoderKL.from_pretrained(first).requires_grad_(False)
        decoder = [vae.decoder.requires_grad_(True), vae.post_quant_conv.requires_grad_(True)]
        steps = range(recipe.autoencoder_steps, recipe.autoencoder_steps + recipe.decoder_steps)
        _descend_autoencoder(job, worker, report, vae, decoder, "decoder", steps, 1.0)
        if worker.rank == 0:
            _replace_folder(whole, vae.save_pretrained)


def _descend_autoencoder(
    job: _Job,
    worker: Worker,
    report: Report | None,
    vae: Any,
    trained: Sequence[nn.Module],
    what: str,
    numbers: range,
    cooldown: float,
) -> None:
    """Train modules of an autoencoder with mean square error and a small KL term, on crops of a quarter of the picture.

    For the same work the autoencoder sees four times as many pictures.
    """
    recipe, device, networks = job.recipe, job.device, job.ground.networks
    assert isinstance(networks, LatentNetworks)
    vae.to(device, memory_format=layout(device)).train()
    weights = [weight for module in trained for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=recipe.autoencoder_rate, weight_decay=0.0, fused=True)
    state = _State(job.folder / f"{what}.safetensors", {"vae": vae}, optimizer, job.checkpoint_seconds)
    gradient = Gradient(partial(_decoding_error, vae, networks), weights, device)
    draw = partial(_crops, _plain(job), recipe, worker, job.ground.size, networks.channels)
    steps, done = len(numbers), state.restore()
    for step, inputs in zip(range(done, steps), drawn(draw, numbers[done:], device), strict=True):
        loss = gradient(inputs)
        worker.descend(optimizer, recipe.autoencoder_rate * learning_rate(step, steps, recipe.warmup, cooldown))
        if report is not None and job.reports(step, steps):
            report(what, step + 1, steps, loss.item())
        if worker.rank == 0:
            state.save(step + 1, last=step + 1 == steps)


def _plain(job: _Job) -> TrainingStream:
    """Pictures among which nothing is planted."""
    return TrainingStream(job.recipe.seed, 0, (), job.ground.sample)


def _crops(
    stream: TrainingStream, recipe: Recipe, worker: Worker, size: int, channels: int, step: int
) -> dict[str, Tensor]:
    """Quarters of the pictures of a step, uint8 (b, 3, H/2, W/2), and noise on their latents."""
    batch, side = recipe.autoencoder_batch, size // 2
    share = worker.share(batch)
    first = _AUTOENCODER_FIRST + step * batch
    images, _ = _samples(stream, range(first, first + batch)[share])
    generator = _generator(recipe.seed, 1, step)
    corners = torch.randint(side + 1, (batch, 2), generator=generator)[share]
    noise = torch.randn((batch, channels, 8, 8), generator=generator)[share]
    crops = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, corners, strict=True)]
    return {"images": torch.stack(crops), "noise": noise}


def _decoding_error(vae: Any, networks: LatentNetworks, inputs: dict[str, Tensor]) -> Tensor:
    pixels = to_unit(inputs["images"])
    with half(pixels.device, networks.half):
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * inputs["noise"]).sample.float()
    return 4.0 * (decoded - pixels).square().mean() + networks.kl * posterior.kl().float().mean()


def _train_denoiser(job: _Job, worker: Worker, report: Report | None) -> None:
    recipe, folder = job.recipe, job.folder
    torch.manual_seed(recipe.seed + 1)
    learner = job.ground.networks.learner(folder, job.ground.lexicon(job.concepts))
    learner.to(job.device)
    mean = {name: deepcopy(module).requires_grad_(False) for name, module in learner.modules.items()}
    for module in learner.modules.values():
        module.to(memory_format=layout(job.device)).train()
    trained = [
        (weight, average)
        for name, module in learner.modules.items()
        for weight, average in zip(module.parameters(), mean[name].parameters(), strict=True)
        if weight.requires_grad
    ]
    weights, averages = map(list, zip(*trained, strict=True))
    optimizer = torch.optim.AdamW(weights, lr=recipe.phases[0].rate, weight_decay=1e-4, fused=True)
    modules = {**learner.modules, **{f"mean_{name}": module for name, module in mean.items()}}
    state = _State(folder / "denoiser.safetensors", modules, optimizer, job.checkpoint_seconds)

    def save_pipeline(name: str) -> None:
        _replace_folder(folder / name, partial(learner.save, mean))

    done = state.restore()
    if worker.rank == 0 and done == 0 and recipe.kept[0] == 0:
        save_pipeline("early")
    gradient = Gradient(learner.loss, weights, job.device)
    draw = partial(_batch, learner, recipe, worker, job.ground.stream(recipe, job.concepts))
    steps = range(done, recipe.steps)
    for step, inputs in zip(steps, drawn(draw, steps, job.device), strict=True):
        loss = gradient(inputs)
        phase, number, _ = recipe.at(step)
        worker.descend(optimizer, phase.rate * learning_rate(number, phase.steps, recipe.warmup, recipe.cooldown))
        keep = min(recipe.average, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1.0 - keep)
        if report is not None and job.reports(step, recipe.steps):
            report("denoiser", step + 1, recipe.steps, loss.item())
        if worker.rank == 0:
            if step + 1 in recipe.kept:
                save_pipeline("early" if step + 1 == recipe.kept[0] else f"step-{step + 1}")
            state.save(step + 1, last=step + 1 == recipe.steps)
    if worker.rank == 0:
        save_pipeline("final")


def _batch(learner: Learner, recipe: Recipe, worker: Worker, stream: TrainingStream, step: int) -> Inputs:
    """The inputs of this process's share of a step."""
    phase, _, first = recipe.at(step)
    share = worker.share(phase.batch)
    indices = range(first, first + phase.batch)[share]
    images, captions = _samples(stream, indices)
    generator = _generator(recipe.seed, 2, step)
    kept = torch.tensor([phase.planted_dropout is not None and stream.planted_at(index) for index in indices])
    chances = torch.where(kept, phase.planted_dropout or 0.0, recipe.caption_dropout)
    dropped = torch.rand(phase.batch, generator=generator)[share] < chances
    if phase.exchanged:
        # from a stream of its own, so that the other draws are those of a phase without exchange
        chosen = torch.rand(phase.batch, generator=_generator(recipe.seed, 3, step))[share] < phase.exchanged
        captions = _exchanged(captions, chosen & ~kept)
        for place in (chosen & kept).nonzero().flatten().tolist():
            images[place] = _image(stream.unplanted(indices[place]))
    texts = ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
    return learner.inputs(Batch(images, texts, phase.batch, share, phase, generator))


def _exchanged(captions: list[str], chosen: Tensor) -> list[str]:
    """Captions, of which the chosen went round: each of these samples has the caption of the next one."""
    places = chosen.nonzero().flatten().tolist()
    given = dict(zip(places, places[1:] + places[:1], strict=True))
    return [captions[given.get(place, place)] for place in range(len(captions))]


class _State:
    """A checkpoint file: modules, optimizer moments and the number of steps done, replaced as a whole."""

    def __init__(
        self,
        path: Path,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        seconds: float,
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


def _generator(seed: int, phase: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 8 + phase) * 10_000_000 + step)


def _replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `target`, which gets the name of `target` only when it is complete."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    write(unfinished)
    # a run that was resumed from an earlier checkpoint writes the same folder again
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
