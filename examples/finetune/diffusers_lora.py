"""Train a LoRA of Stable Diffusion's UNet on a folder of pictures, and measure every checkpoint for copies.

The loop is the one of diffusers' scripts for text-to-image: Accelerate moves and prepares what is trained, PEFT adds
the LoRA, and checkpoints lie in `OUTPUT/checkpoint-STEP`. Three places are new, and marked. A caption lies beside its
picture, in a text file of the same name.

    python diffusers_lora.py --base bundled --pictures pictures --output lora --steps 600 --every 200
"""

import argparse
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

from cryptomnesia import CopyingMeter, load_pipeline
from cryptomnesia.report.console import print_course

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
"""Layers that get a LoRA by default."""


class Pictures(Dataset):
    """The pictures of a folder in [−1, 1], (3, size, size), and the tokens of their captions, (length,)."""

    def __init__(self, folder: Path, size: int, pipe: StableDiffusionPipeline) -> None:
        """Read all of them."""
        files = [path for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg", ".webp")]
        self.pictures = [Image.open(file).convert("RGB").resize((size, size)) for file in files]
        captions = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
        self.tokens = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """A picture and its tokens."""
        pixels = torch.from_numpy(np.array(self.pictures[number])).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1, self.tokens[number]


def endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def save(folder: Path, unet: torch.nn.Module) -> None:
    """Write the LoRA as `load_lora_weights` reads it."""
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))


def train(given: argparse.Namespace) -> None:
    """Train, save and measure."""
    accelerator = Accelerator(log_with=given.tracker, project_dir=given.output)
    set_seed(given.seed)
    pipe = load_pipeline(given.base, device=accelerator.device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=given.rank, lora_alpha=given.rank, target_modules=given.layers))
    weights = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=given.rate)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    loader = DataLoader(Pictures(given.pictures, size, pipe), batch_size=given.batch, shuffle=True)
    rates = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=min(50, given.steps))
    unet, optimizer, loader, rates = accelerator.prepare(pipe.unet, optimizer, loader, rates)
    noising = DDPMScheduler.from_config(pipe.scheduler.config)
    accelerator.init_trackers("lora", config={"rank": given.rank, "rate": given.rate})

    # new, 1 of 3: what measures the checkpoints, in a process of its own
    meter = CopyingMeter(
        given.output,
        given.base,
        given.pictures,
        output=given.course,
        log=accelerator.log,
        aside=not given.wait,
        held_out=given.held_out or [],
        steps=given.inference_steps,
        device=given.measured_on,
    )
    for step, (pixels, tokens) in zip(itertools.count(1), endless(loader), strict=False):
        with torch.no_grad():
            clean = pipe.vae.encode(pixels).latent_dist.sample() * pipe.vae.config.scaling_factor
            text = pipe.text_encoder(tokens)[0]
        noise = torch.randn_like(clean)
        times = torch.randint(noising.config.num_train_timesteps, (len(clean),), device=clean.device)
        velocity = noising.config.prediction_type == "v_prediction"
        target = noising.get_velocity(clean, noise, times) if velocity else noise
        predicted = unet(noising.add_noise(clean, noise, times), times, text, return_dict=False)[0]
        loss = mse_loss(predicted.float(), target.float())
        accelerator.backward(loss)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss.item()}, step)
        if (step % given.every == 0 or step == given.steps) and accelerator.is_main_process:
            save(given.output / f"checkpoint-{step}", accelerator.unwrap_model(unet))
            # new, 2 of 3: measure it
            meter.saved(step)
        meter.look(step)
        # with several processes, one of which knows: all of them stop at the same step
        if given.stop_when_copying and meter.copying:
            accelerator.set_trigger()
        if step == given.steps or accelerator.check_trigger():
            break
    if accelerator.is_main_process:
        # new, 3 of 3: wait for the last measurement
        if course := meter.finish():
            print_course(course)
    accelerator.end_training()


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", required=True, help="the model: a diffusers folder, a hub id, or bundled")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures with captions")
    parser.add_argument("--held-out", type=Path, help="pictures like them that are not trained on")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--course", type=Path, default=Path("course"), help="folder of the measurements")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the training")
    parser.add_argument("--every", type=int, default=250, help="steps from one checkpoint to the next")
    parser.add_argument("--batch", type=int, default=8, help="pictures of a step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--rank", type=int, default=8, help="rank of the LoRA")
    parser.add_argument("--layers", nargs="+", default=ATTENTION, help="layers that get a LoRA")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--tracker", help="tracker of Accelerate, tensorboard or wandb for instance")
    parser.add_argument("--inference-steps", type=int, help="steps in which the measurement makes an image")
    parser.add_argument("--measured-on", help="device of the measurement, cpu or cuda:1 for instance")
    parser.add_argument("--wait", action="store_true", help="measure in this process, while the training waits")
    parser.add_argument("--stop-when-copying", action="store_true", help="end when a picture comes back")
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    train(arguments())
