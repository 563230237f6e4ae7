"""UNet pipelines that begin from a picture: image-to-image, inpainting, and the refiner of SDXL.

They call the UNet as the pipelines of text to image do. Inpainting models read a mask and the masked picture as further
channels behind the noisy ones; other models are given the noisy samples alone, and the pipeline pastes the known part
of the picture into the latents after every step.
"""

from typing import ClassVar

from cryptomnesia.pipelines.families.unet import UNetFamily


class ImageToImageFamily(UNetFamily):
    """The family of the image-to-image pipelines of SD, SDXL (also its refiner), Kolors and LCM."""

    name: ClassVar[str] = "stable-diffusion-image-to-image"
    pictures: ClassVar[frozenset[str]] = frozenset({"image"})
    needed: ClassVar[frozenset[str]] = pictures


class InpaintFamily(UNetFamily):
    """The family of the inpainting pipelines of SD and SDXL."""

    name: ClassVar[str] = "stable-diffusion-inpainting"
    pictures: ClassVar[frozenset[str]] = frozenset({"image", "mask_image"})
    needed: ClassVar[frozenset[str]] = pictures
