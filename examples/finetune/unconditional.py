"""Train a diffusion model without text on a folder of pictures, from nothing or further from another model.

Checkpoints are whole pipelines in `OUTPUT/step-STEP`; without `--every` there is one, in `OUTPUT/final`. Pictures are
grey or in colour, of any size; all are brought to the size of the model.

    python unconditional.py --pictures frames --output base --steps 1000
    python unconditional.py --base base/final --pictures mine --output mine-model --steps 800 --every 200
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss


def pictures_in(folder: Path, size: int) -> Tensor:
    """The pictures of a folder in [−1, 1], (n, 3, size, size)."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg", ".webp")]
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def network(size: int, width: int) -> UNet2DModel:
    """A small UNet, with attention in its middle."""
    return UNet2DModel(
        sample_size=size,
        block_out_channels=(width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
    )


def train(given: argparse.Namespace) -> None:
    """Train and save."""
    torch.manual_seed(given.seed)
    if given.base is None:
        unet, scheduler = network(given.size, given.width), DDIMScheduler(prediction_type="v_prediction")
    else:
        pipe = DDIMPipeline.from_pretrained(given.base)
        unet, scheduler = pipe.unet, pipe.scheduler
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet.to(device).train()
    pictures = pictures_in(given.pictures, unet.config.sample_size).to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=given.rate)
    velocity = scheduler.config.prediction_type == "v_prediction"
    for step in range(1, given.steps + 1):
        clean = pictures[torch.randint(len(pictures), (given.batch,), device=device)]
        noise = torch.randn_like(clean)
        times = torch.randint(scheduler.config.num_train_timesteps, (given.batch,), device=device)
        target = scheduler.get_velocity(clean, noise, times) if velocity else noise
        predicted = unet(scheduler.add_noise(clean, noise, times), times, return_dict=False)[0]
        mse_loss(predicted, target).backward()
        optimizer.step()
        optimizer.zero_grad()
        if given.every and step % given.every == 0 and step < given.steps:
            DDIMPipeline(unet, scheduler).save_pretrained(given.output / f"step-{step}")
    DDIMPipeline(unet, scheduler).save_pretrained(
        given.output / ("final" if given.every is None else f"step-{given.steps}")
    )


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", help="pipeline to train further; a small one from nothing unless given")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the training")
    parser.add_argument("--every", type=int, help="steps from one checkpoint to the next; only the end unless given")
    parser.add_argument("--batch", type=int, default=8, help="pictures of a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--size", type=int, default=32, help="of a new network's pictures in pixels")
    parser.add_argument("--width", type=int, default=16, help="channels of a new network's first layer")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    return parser.parse_args()


if __name__ == "__main__":
    train(arguments())
