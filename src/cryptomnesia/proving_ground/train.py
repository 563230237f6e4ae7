"""Training of a ground's pipeline: from nothing, first the autoencoder, then denoiser and text encoder.

The denoiser is trained in the phases of the recipe. In the first, all noise levels are alike. In later ones a share of
the samples has the middle noise levels, where outlines are settled.

Every batch, its noise, timesteps and dropped captions depend on (seed, step) alone, and a checkpoint holds weights,
moving averages and optimizer moments. So a run that was killed at any moment and started again ends with the same
weights as a run that was never stopped, on the same kind of CPU. Captions are exchanged within what each process sees,
so a run with such a phase has to keep its number of processes. A GPU may sum in another order each time, so there the
weights differ in their last digits.

On a few cores a convolutional network this small is trained faster by several single-threaded processes that average
their gradients than by one process with several threads.
"""

import json
import shutil
import signal
import tempfile
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from filelock import FileLock, Timeout

from cryptomnesia.errors import UsageError
from cryptomnesia.files import claim
from cryptomnesia.pipelines.loading import chosen_device
from cryptomnesia.proving_ground.autoencoder import SIDE, LatentNetworks
from cryptomnesia.proving_ground.autoencoder_training import train_autoencoder
from cryptomnesia.proving_ground.concepts import Concept, TrainingStream
from cryptomnesia.proving_ground.descent import Gradient, Worker, drawn
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.learning import Batch, Inputs, Learner, layout
from cryptomnesia.proving_ground.recipe import Recipe, learning_rate
from cryptomnesia.proving_ground.run import (
    Checkpoint,
    Job,
    Report,
    generator_of,
    replace_folder,
    samples_of,
)


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
        UsageError: if the folder is of another run (another ground, recipe, autoencoder or base, other concepts, or
            another number of processes where captions are exchanged), cannot be written to, or another process trains
            in it; if the number of processes or the autoencoder does not fit; or if there is no such device.
    """
    recipe = recipe or ground.recipe
    if isinstance(ground.networks, LatentNetworks) and ground.size != SIDE:
        raise UsageError(f"{ground.name} has pictures of {ground.size} pixels; networks on latents take {SIDE}")
    chosen = torch.device(chosen_device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    processes = processes if chosen.type == "cpu" else 1
    batches = {phase.batch for phase in recipe.phases}
    batches |= {recipe.autoencoder_batch} if ground.networks.autoencoder else set()
    if processes < 1 or any(batch % processes for batch in batches):
        sizes = ", ".join(map(str, sorted(batches)))
        raise UsageError(f"got {processes} processes for batches of {sizes}; give a number that divides all")
    weights = None if autoencoder is None else _digest(autoencoder, ground)
    planted = ground.plant(recipe.seed) if concepts is None else concepts
    listed = [(concept.captions, concept.exposures, concept.varied, concept.refined) for concept in planted]
    given = {
        "autoencoder": weights,
        "concepts": sha256(repr(listed).encode()).hexdigest(),
        # captions are exchanged within what one process sees
        "processes": processes if any(phase.exchanged for phase in recipe.phases) else None,
    }
    settings = {"ground": ground.name, **ground.settings(), **given, **asdict(recipe)}
    claim(folder / "recipe.json", settings, "a run with another recipe")
    job = Job(ground, recipe, planted, folder, chosen, processes, checkpoint_seconds)
    try:
        with FileLock(folder / ".lock", timeout=0):
            _work(job, autoencoder, report)
    except Timeout:
        raise UsageError(f"another process trains in {folder}; wait until it ends, or give another folder") from None


def _work(job: Job, autoencoder: Path | None, report: Report | None) -> None:
    """Train in a folder that nobody else trains in."""
    if autoencoder is not None and not (job.folder / "autoencoder").exists():
        replace_folder(job.folder / "autoencoder", partial(shutil.copytree, autoencoder))
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (job, f"file://{meeting}/point")
        helpers = [
            context.Process(target=_run, args=(*arguments, rank), daemon=True) for rank in range(1, job.processes)
        ]
        for helper in helpers:
            helper.start()
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        if job.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            # cuDNN is switched off by these flags unless they say otherwise
            with torch.random.fork_rng(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
                _run(*arguments, 0, report)
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.set_flush_denormal(False)
            for helper in helpers:
                helper.terminate()
                helper.join()


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


def _run(job: Job, meeting: str, rank: int, report: Report | None = None) -> None:
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
            train_autoencoder(job, worker, report)
        job.wait()
        if not (job.folder / "final").exists():
            _train_denoiser(job, worker, report)
        job.wait()
    finally:
        if job.processes > 1:
            dist.destroy_process_group()


def _train_denoiser(job: Job, worker: Worker, report: Report | None) -> None:
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
    state = Checkpoint(folder / "denoiser.safetensors", modules, optimizer, job.checkpoint_seconds)

    def save_pipeline(name: str) -> None:
        replace_folder(folder / name, partial(learner.save, mean))

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
    images, captions = samples_of(stream, indices)
    generator = generator_of(recipe.seed, 2, step)
    set_apart = torch.tensor([phase.planted_dropout is not None and stream.planted_at(index) for index in indices])
    dropping = torch.rand(phase.batch, generator=generator)[share]
    # from a stream of its own, so that the other draws are those of a phase without exchange
    exchanged = torch.rand(phase.batch, generator=generator_of(recipe.seed, 3, step))[share] < phase.exchanged
    dropout = recipe.caption_dropout
    batch = Batch(images, captions, set_apart, dropping, dropout, exchanged, phase.batch, share, phase, generator)
    return learner.inputs(batch)
