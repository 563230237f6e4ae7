"""Miniatures of UNet pipelines that are given a picture, of 16×16 pixels."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import (
    ControlNetModel,
    KolorsImg2ImgPipeline,
    LatentConsistencyModelImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from cryptomnesia.testing.miniatures.parts import unet
from cryptomnesia.testing.miniatures.unets import (
    kolors,
    latent_consistency,
    stable_diffusion,
    stable_diffusion_xl,
    xl_unet,
)

SIDE = 16


def picture(seed: int = 0) -> PIL.Image.Image:
    """A picture of coloured noise."""
    values = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def mask() -> PIL.Image.Image:
    """A mask of the picture's left half."""
    values = np.zeros((SIDE, SIDE), dtype=np.uint8)
    values[:, : SIDE // 2] = 255
    return PIL.Image.fromarray(values)


IMAGE: dict[str, Any] = {"image": picture()}
MASKED: dict[str, Any] = {**IMAGE, "mask_image": mask()}
CONTROL: dict[str, Any] = {"control_image": picture(1)}
"""Arguments of calls."""


def image_to_image() -> StableDiffusionImg2ImgPipeline:
    """SD, from picture to picture."""
    return _made(StableDiffusionImg2ImgPipeline, stable_diffusion())


def image_to_image_xl() -> StableDiffusionXLImg2ImgPipeline:
    """SDXL, from picture to picture."""
    return _made(StableDiffusionXLImg2ImgPipeline, stable_diffusion_xl())


def refiner() -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner, which has one text encoder and reads an aesthetic score."""
    parts = stable_diffusion_xl(refines=True).components
    settings = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    return _quiet(StableDiffusionXLImg2ImgPipeline(**parts, **settings))


def kolors_image_to_image() -> KolorsImg2ImgPipeline:
    """Kolors, from picture to picture."""
    return _made(KolorsImg2ImgPipeline, kolors())


def latent_consistency_image_to_image() -> LatentConsistencyModelImg2ImgPipeline:
    """A latent consistency model, from picture to picture."""
    return _made(LatentConsistencyModelImg2ImgPipeline, latent_consistency())


def inpainting(channels: int = 9) -> StableDiffusionInpaintPipeline:
    """SD with a UNet that reads mask and picture (9 channels), or with the UNet of text to image (4)."""
    return _made(StableDiffusionInpaintPipeline, stable_diffusion(), unet=_unet(unet, channels))


def inpainting_xl(channels: int = 9) -> StableDiffusionXLInpaintPipeline:
    """SDXL with a UNet that reads mask and picture (9 channels), or with the UNet of text to image (4)."""
    return _made(StableDiffusionXLInpaintPipeline, stable_diffusion_xl(), unet=_unet(xl_unet, channels))


def controlnet(kind: type[Any] = StableDiffusionControlNetPipeline, count: int = 1) -> Any:
    """SD with a ControlNet, or several."""
    pipe = stable_diffusion()
    nets = [_control(pipe.unet, seed) for seed in range(count)]
    return _made(kind, pipe, controlnet=nets if count > 1 else nets[0])


def controlnet_xl(kind: type[Any] = StableDiffusionXLControlNetPipeline) -> Any:
    """SDXL with a ControlNet."""
    pipe = stable_diffusion_xl()
    return _made(kind, pipe, controlnet=_control(pipe.unet))


def _unet(make: Any, channels: int) -> Any:
    torch.manual_seed(0)
    return make(in_channels=channels).eval()


def _control(network: Any, seed: int = 0) -> ControlNetModel:
    """A ControlNet of a UNet, whose last layers are not zero as those of an untrained one."""
    torch.manual_seed(seed)
    made = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False)
    for weight in made.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return made.eval()


def _made(kind: type[Any], pipe: Any, **more: Any) -> Any:
    """A pipeline of another class from the parts of a pipeline."""
    parts = {**pipe.components, **more}
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = False
    return _quiet(kind(**parts))


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
