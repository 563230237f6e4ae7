"""One miniature of every model family, with and without guidance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DDPMPipeline

from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import (
    TRUE_GUIDANCE,
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
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
