"""UNet pipelines with a ControlNet, a second network that reads the noisy samples and a picture, and adds to the UNet.

What a ControlNet adds depends on the noisy samples, so the differentiable view is both networks together. In guess mode
the ControlNet is called for the conditional samples only, and adds nothing to the others.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from cryptomnesia.pipelines.caches import check_uncached
from cryptomnesia.pipelines.denoiser import Prediction
from cryptomnesia.pipelines.families.base import Branch, Evaluation, NetworkCall
from cryptomnesia.pipelines.families.network import NetworkDenoiser, named_arguments
from cryptomnesia.pipelines.families.unet import UNetFamily
from cryptomnesia.pipelines.inputs import CONTROL, Inputs, input_rows, plain, sorted_out
from cryptomnesia.pipelines.schedule import Level


class ControlNetFamily(UNetFamily):
    """The family of the pipelines of SD and SDXL with one ControlNet or several."""

    name: ClassVar[str] = "stable-diffusion-controlnet"
    pictures: ClassVar[frozenset[str]] = frozenset({"image"})
    needed: ClassVar[frozenset[str]] = pictures

    control: ClassVar[str] = "image"
    """The picture of the ControlNet."""

    def __init__(self, pipe: Any) -> None:
        """Read what the network predicts, and on which noise schedule it was trained.

        Raises:
            UsageError: for a scheduler that does not solve the model.
        """
        super().__init__(pipe)
        if hasattr(pipe.controlnet, "nets"):
            # a list of pictures has one for each of several ControlNets, not one for each prompt
            vars(self)["pictures"] = self.pictures - {self.control}

    @property
    def beside(self) -> tuple[nn.Module, ...]:
        """The ControlNet, or several as one network: the UNet gets what it computes."""
        return (self.pipe.controlnet,)

    def native(self) -> tuple[int, int]:
        """No size: without one, the picture's is taken."""
        return 0, 0

    def read(self, calls: Sequence[NetworkCall], sample: Tensor) -> Evaluation | None:
        """Read the UNet's calls, and add what the ControlNet was given to their conditioning."""
        found = super().read([call for call in calls if call.module is not self.pipe.controlnet], sample)
        given = [call for call in calls if call.module is self.pipe.controlnet]
        if found is None or not given:
            return found
        arguments = named_arguments(self.pipe.controlnet, given[-1])
        batch, images = len(arguments.pop("sample")), len(sample)
        inputs = {
            name: sorted_out(value, batch, name=name)
            for name, value in arguments.items()
            if value is not None and name not in ("timestep", "return_dict")
        }
        if found.uncond is None:
            return replace(found, cond=_controlled(found.cond, inputs))
        # in guess mode the ControlNet is given the conditional samples only
        cond = _controlled(found.cond, input_rows(inputs, slice(batch - images, batch)))
        if batch == images:
            return replace(found, cond=cond)
        return replace(found, cond=cond, uncond=_controlled(found.uncond, input_rows(inputs, slice(images))))

    def denoiser(self) -> "ControlledDenoiser":
        """The ControlNet and the UNet as one differentiable function.

        Raises:
            UsageError: for a UNet with a cache.
        """
        check_uncached(self.module)
        return ControlledDenoiser(self)


class ControlNetImageToImageFamily(ControlNetFamily):
    """The family of the image-to-image pipelines with a ControlNet."""

    name: ClassVar[str] = "stable-diffusion-controlnet-image-to-image"
    pictures: ClassVar[frozenset[str]] = frozenset({"image", "control_image"})
    needed: ClassVar[frozenset[str]] = pictures
    control: ClassVar[str] = "control_image"


class ControlNetInpaintFamily(ControlNetFamily):
    """The family of the inpainting pipelines with a ControlNet."""

    name: ClassVar[str] = "stable-diffusion-controlnet-inpainting"
    pictures: ClassVar[frozenset[str]] = frozenset({"image", "mask_image", "control_image"})
    needed: ClassVar[frozenset[str]] = pictures
    control: ClassVar[str] = "control_image"


class ControlledDenoiser(NetworkDenoiser):
    """A UNet and its ControlNet as `Denoiser`."""

    def __call__(self, x: Tensor, level: Level, inputs: Inputs) -> Prediction:
        """The prediction at x (B, C, h, w) and one noise level for the whole batch."""
        if CONTROL in inputs and isinstance(level, Level):
            time = self.family.time(level.t, x)
            down, middle = self.family.pipe.controlnet(x, time, **plain(inputs[CONTROL]), return_dict=False)
            added = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
            inputs = {**inputs, **added}
        return super().__call__(x, level, inputs)


def _controlled(branch: Branch, control: Any) -> Branch:
    """A branch with the conditioning of the ControlNet."""
    return replace(branch, inputs={**branch.inputs, CONTROL: control})
