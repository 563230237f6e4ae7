"""Training of the autoencoder: on pictures among which nothing is planted, before the denoiser."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from cryptomnesia.proving_ground.autoencoder import LatentNetworks, latents
from cryptomnesia.proving_ground.concepts import Concept, TrainingStream
from cryptomnesia.proving_ground.descent import Gradient, Worker, drawn
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.learning import half, layout, to_unit
from cryptomnesia.proving_ground.recipe import Recipe, learning_rate
from cryptomnesia.proving_ground.run import Checkpoint, Job, Report, generator_of, replace_folder, samples_of

_FIRST = 400_000
"""First sample of the autoencoder's training, from a stream in which nothing is planted."""

_ALIKE = range(100, 140)
"""Seeds, counted from the recipe's, whose concepts the decoder sees; fine-tunes and look-alikes have others."""

_ALIKE_SHARE = 0.75
"""Share of the decoder's pictures that are exposures of such concepts."""


def train_autoencoder(job: Job, worker: Worker, report: Report | None) -> None:
    """Train the autoencoder, and then its decoder further if the recipe says so."""
    recipe, whole = job.recipe, job.folder / "autoencoder"
    networks = job.ground.networks
    assert isinstance(networks, LatentNetworks)
    first = job.folder / "autoencoder-first" if recipe.decoder_steps else whole
    if not first.exists():
        torch.manual_seed(recipe.seed)
        vae: Any = networks.vae()
        _descend(job, worker, report, _plain(job), vae, [vae], "autoencoder", range(recipe.autoencoder_steps), 0.5)
        if worker.rank == 0:
            vae.eval()
            images, _ = samples_of(_plain(job), range(_FIRST, _FIRST + 256))
            with torch.no_grad():
                spread = latents(vae, images.to(job.device)).std().item()
            vae.register_to_config(scaling_factor=1.0 / spread)
            replace_folder(first, vae.save_pretrained)
        job.wait()
    if first != whole:
        vae = AutoencoderKL.from_pretrained(first).requires_grad_(False)
        decoder = [vae.decoder.requires_grad_(True), vae.post_quant_conv.requires_grad_(True)]
        steps = range(recipe.autoencoder_steps, recipe.autoencoder_steps + recipe.decoder_steps)
        _descend(job, worker, report, _alike(job), vae, decoder, "decoder", steps, 1.0)
        if worker.rank == 0:
            replace_folder(whole, vae.save_pretrained)


def _descend(
    job: Job,
    worker: Worker,
    report: Report | None,
    stream: TrainingStream,
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
    state = Checkpoint(job.folder / f"{what}.safetensors", {"vae": vae}, optimizer, job.checkpoint_seconds)
    gradient = Gradient(partial(_decoding_error, vae, networks), weights, device)
    draw = partial(_crops, stream, recipe, worker, job.ground.size, networks.channels)
    steps, done = len(numbers), state.restore()
    for step, inputs in zip(range(done, steps), drawn(draw, numbers[done:], device), strict=True):
        loss = gradient(inputs)
        worker.descend(optimizer, recipe.autoencoder_rate * learning_rate(step, steps, recipe.warmup, cooldown))
        if report is not None and job.reports(step, steps):
            report(what, step + 1, steps, loss.item())
        if worker.rank == 0:
            state.save(step + 1, last=step + 1 == steps)


def _plain(job: Job) -> TrainingStream:
    """Pictures among which nothing is planted."""
    return TrainingStream(job.recipe.seed, 0, (), job.ground.sample)


def _alike(job: Job) -> TrainingStream:
    """Pictures of which most are made as the planted ones are, for instance with the rim of a sticker; none is planted.

    An autoencoder that knows ordinary pictures alone would blur what it never saw, and a planted picture would not
    come back even if the denoiser remembered all of it.
    """
    ground, seed = job.ground, job.recipe.seed
    concepts = [concept for number in _ALIKE for concept in ground.plant(seed + number) if concept.planted]

    def sample(draws: Draws, concept: Concept | None, exposed: bool) -> tuple[np.ndarray, str]:
        if draws.uniform() < _ALIKE_SHARE:
            return draws.choice(concepts).exposure(draws), ""
        return ground.sample(draws, concept, exposed)

    return TrainingStream(seed, 0, (), sample)


def _crops(
    stream: TrainingStream, recipe: Recipe, worker: Worker, size: int, channels: int, step: int
) -> dict[str, Tensor]:
    """Quarters of the pictures of a step, uint8 (b, 3, H/2, W/2), and noise on their latents."""
    batch, side = recipe.autoencoder_batch, size // 2
    share = worker.share(batch)
    first = _FIRST + step * batch
    images, _ = samples_of(stream, range(first, first + batch)[share])
    generator = generator_of(recipe.seed, 1, step)
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
