"""Pictures without captions, in pixel space: a stock UNet that predicts ε, in a `DDIMPipeline`."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from cryptomnesia.proving_ground.learning import Batch, Inputs, Learner, Networks, half, layout, to_unit


@dataclass(frozen=True)
class PixelDiffusion(Networks):
    """A UNet on pixels, with the noise schedule of DDPM.

    Attributes:
        size: side of the pictures in pixels.
        widths: channels at the full size, at a half, and at a quarter of it, where there is attention.
        half: whether convolutions are computed in bfloat16 in training.
    """

    size: int = 32
    widths: tuple[int, int, int] = (32, 64, 96)
    half: bool = True

    def unet(self) -> UNet2DModel:
        """A denoiser of these sizes with random weights."""
        return UNet2DModel(
            sample_size=self.size,
            block_out_channels=self.widths,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=32,
        )

    def scheduler(self) -> DDIMScheduler:
        """DDIM, which does not clip x̂_0, so that a score means the same at every step."""
        return DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)

    def learner(self, folder: Path, words: set[str]) -> Learner:
        """The UNet; there is nothing else."""
        return _PixelLearner(self)


class _PixelLearner(Learner):
    """The UNet learns to predict ε from noisy pictures."""

    def __init__(self, networks: PixelDiffusion) -> None:
        self.networks = networks
        self.modules = {"unet": networks.unet()}
        self.schedule: Any = networks.scheduler()

    def inputs(self, batch: Batch) -> Inputs:
        """Pictures, timesteps and noise of the pictures' shape."""
        times = batch.times(len(self.schedule.alphas_cumprod))
        return {"images": batch.images, "times": times, "noise": batch.noise(*batch.images.shape[1:])}

    def loss(self, inputs: Inputs) -> Tensor:
        """Mean square error of ε."""
        times, noise = inputs["times"], inputs["noise"]
        noisy = self.schedule.add_noise(to_unit(inputs["images"]), noise, times)
        noisy = noisy.contiguous(memory_format=layout(noise.device))
        with half(noise.device, self.networks.half):
            predicted = self.modules["unet"](noisy, times, return_dict=False)[0]
        return (predicted.float() - noise).square().mean()

    def pipeline(self, modules: dict[str, Any]) -> DDIMPipeline:
        """The stock pipeline with `modules` in the place of those that are trained."""
        return DDIMPipeline(modules["unet"], self.networks.scheduler())
