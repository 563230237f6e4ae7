"""One miniature of every model family, with and without guidance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from diffusers import (
    DDPMPipeline,
    PixArtAlphaPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
)

from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import (
    TRUE_GUIDANCE,
    diffusion_transformers,
    flux,
    packed,
    pictures,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
    unets,
    unpacked,
)


@dataclass(frozen=True)
class Case:
    """A miniature and the arguments of its calls."""

    make: Callable[[], Any]
    call: Mapping[str, Any]

    def setup(self, pipe: Any = None) -> Setup:
        return Setup.of(self.make() if pipe is None else pipe, dict(self.call))


GUIDED = {"num_inference_steps": 4, "guidance_scale": 2.0}
UNGUIDED = {"num_inference_steps": 4, "guidance_scale": 1.0}

CASES = {
    "sd-epsilon": Case(stable_diffusion, GUIDED),
    "sd-v": Case(lambda: stable_diffusion("v_prediction"), GUIDED),
    "sd unguided": Case(stable_diffusion, UNGUIDED),
    "sdxl": Case(stable_diffusion_xl, GUIDED),
    "sd3": Case(stable_diffusion_3, GUIDED),
    "sd3 unguided": Case(stable_diffusion_3, UNGUIDED),
    "flux distilled": Case(flux, {**GUIDED, "guidance_scale": 3.5, "height": 16, "width": 16}),
    "flux true guidance": Case(flux, {**UNGUIDED, "height": 16, "width": 16, **TRUE_GUIDANCE}),
    "ddim": Case(unconditional, {"num_inference_steps": 4}),
    "ddpm": Case(lambda: unconditional(DDPMPipeline), {"num_inference_steps": 4}),
}

STRENGTH = {"strength": 0.8}

MORE = {
    "ddpm learned variance": Case(
        lambda: unconditional(DDPMPipeline, learned_variance=True), {"num_inference_steps": 4}
    ),
    "latent consistency": Case(unets.latent_consistency, {**GUIDED, "guidance_scale": 8.0}),
    "latent consistency image to image": Case(
        pictures.latent_consistency_image_to_image, {**GUIDED, "guidance_scale": 8.0, **pictures.IMAGE}
    ),
    "kolors": Case(unets.kolors, {**GUIDED, "max_sequence_length": 32}),
    "kolors image to image": Case(
        pictures.kolors_image_to_image, {**GUIDED, "max_sequence_length": 32, **pictures.IMAGE, **STRENGTH}
    ),
    "image to image": Case(pictures.image_to_image, {**GUIDED, **pictures.IMAGE, **STRENGTH}),
    "sdxl image to image": Case(pictures.image_to_image_xl, {**GUIDED, **pictures.IMAGE, **STRENGTH}),
    "refiner": Case(pictures.refiner, {**GUIDED, **pictures.IMAGE, **STRENGTH}),
    "inpainting": Case(pictures.inpainting, {**GUIDED, **pictures.MASKED}),
    "inpainting, 4 channels": Case(lambda: pictures.inpainting(4), {**GUIDED, **pictures.MASKED, **STRENGTH}),
    "sdxl inpainting": Case(pictures.inpainting_xl, {**GUIDED, **pictures.MASKED}),
    "sdxl inpainting, 4 channels": Case(lambda: pictures.inpainting_xl(4), {**GUIDED, **pictures.MASKED}),
    "controlnet": Case(pictures.controlnet, {**GUIDED, **pictures.IMAGE}),
    "controlnet, guess mode": Case(pictures.controlnet, {**GUIDED, **pictures.IMAGE, "guess_mode": True}),
    "two controlnets": Case(
        lambda: pictures.controlnet(count=2), {**GUIDED, "image": [pictures.picture(1), pictures.picture(2)]}
    ),
    "controlnet image to image": Case(
        lambda: pictures.controlnet(StableDiffusionControlNetImg2ImgPipeline),
        {**GUIDED, **pictures.IMAGE, **pictures.CONTROL},
    ),
    "controlnet inpainting": Case(
        lambda: pictures.controlnet(StableDiffusionControlNetInpaintPipeline),
        {**GUIDED, **pictures.MASKED, **pictures.CONTROL},
    ),
    "sdxl controlnet": Case(pictures.controlnet_xl, {**GUIDED, **pictures.IMAGE}),
    "sdxl controlnet image to image": Case(
        lambda: pictures.controlnet_xl(StableDiffusionXLControlNetImg2ImgPipeline),
        {**GUIDED, **pictures.IMAGE, **pictures.CONTROL},
    ),
    "sdxl controlnet inpainting": Case(
        lambda: pictures.controlnet_xl(StableDiffusionXLControlNetInpaintPipeline),
        {**GUIDED, **pictures.MASKED, **pictures.CONTROL},
    ),
    "pixart sigma": Case(diffusion_transformers.pixart, {**GUIDED, **diffusion_transformers.UNBINNED}),
    "pixart alpha": Case(
        lambda: diffusion_transformers.pixart(PixArtAlphaPipeline), {**GUIDED, **diffusion_transformers.UNBINNED}
    ),
    "sana": Case(diffusion_transformers.sana, {**GUIDED, **diffusion_transformers.UNINSTRUCTED}),
}
"""Families that are derived from those above, and further transformers."""

PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
MASK = PIL.Image.fromarray(np.repeat(np.array([[0] * 8 + [255] * 8], dtype=np.uint8), 16, axis=0))
NEGATIVE = {"true_cfg_scale": 2.0, "negative_prompt": "a green ring"}
SHORT = {"max_sequence_length": 32}
SMALL = {"height": 16, "width": 16, **SHORT}
EDITED = {"image": PICTURE, "strength": 1.0, **SHORT}
INPAINTED = {**EDITED, "mask_image": MASK}
KONTEXT = {"image": PICTURE, "max_area": 256, "_auto_resize": False, **SHORT}
FLUX2 = {"num_inference_steps": 4, "guidance_scale": 2.0, **SHORT, **packed.LAYERS}

FLOWS = {
    "sd3 image to image": Case(unpacked.sd3_image_to_image, {**GUIDED, **EDITED}),
    "sd3 inpainting": Case(unpacked.sd3_inpainting, {**GUIDED, **INPAINTED}),
    "flux image to image": Case(packed.flux_image_to_image, {**GUIDED, **EDITED, **NEGATIVE}),
    "flux inpainting": Case(packed.flux_inpainting, {**GUIDED, **INPAINTED}),
    "kontext": Case(packed.flux_kontext, {**GUIDED, **KONTEXT, **NEGATIVE}),
    "flux 2": Case(packed.flux2, FLUX2),
    "flux 2 edited": Case(packed.flux2, {**FLUX2, "height": 16, "width": 16, "image": PICTURE.resize((64, 64))}),
    "flux 2 klein": Case(packed.flux2_klein, FLUX2),
    "qwen-image": Case(packed.qwen_image, {"num_inference_steps": 4, **SHORT, **NEGATIVE}),
    "z-image": Case(unpacked.z_image, {**UNGUIDED, **SMALL}),
    "lumina 2": Case(unpacked.lumina2, {**GUIDED, **SHORT}),
    "chroma": Case(packed.chroma, {**GUIDED, **SHORT}),
    "aura flow": Case(unpacked.aura_flow, {**GUIDED, **SMALL}),
    "cogview 4": Case(unpacked.cogview4, GUIDED),
    "hidream": Case(unpacked.hidream, {**GUIDED, **SHORT}),
}
"""Transformers that are trained on rectified flow, beside Stable Diffusion 3 and Flux."""

PASTED = {"mitigate: the solver lands where it is steered": "the pipeline pastes the known part of the picture"}
"""What is known of inpainting with a network that does not read the mask."""


def known_failures(name: str) -> dict[str, str]:
    """The checks of `check_family` that a case is known to fail, with the reason."""
    pastes = name.endswith("inpainting, 4 channels") or ("controlnet" in name and "inpainting" in name)
    return PASTED if pastes or name == "flux inpainting" else {}
