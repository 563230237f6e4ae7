"""The model of another ground, trained further in full or by LoRA.

As in diffusers' scripts for text-to-image, the UNet is trained and the text encoder stays as it is.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.latent import LatentText, TextLearner
from cryptomnesia.proving_ground.learning import Learner, Networks
from cryptomnesia.proving_ground.manifest import Manifest

LORA = "lora"
"""Folder of the adapter in the folder of a pipeline that LoRA made."""

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2")
"""Layers of the UNet that get an adapter: those of its transformers and the convolutions of its residual blocks.

In networks this small, adapters of the attention alone have too few weights to learn the pictures.
"""


def base_settings(origin: Ground, base: Path | None) -> dict[str, Any]:
    """What a training depends on that goes on from `base`, a bundle of the ground `origin`: the digest of its weights.

    Raises:
        UsageError: if there is no base, or it is of another ground.
    """
    assert base is not None
    if base == origin.bundle and not base.exists():
        raise UsageError(
            f"the model of {origin.name} does not come with the package; make it with `cryptomnesia "
            f"proving-ground train {origin.name} FOLDER`, then give --base FOLDER/bundle"
        )
    manifest = Manifest.load(base)
    if manifest.ground != origin.name:
        raise UsageError(f"{base} is a model of {manifest.ground}; give one of {origin.name}")
    return {"base": manifest.weights}


@dataclass(frozen=True)
class Further(Networks):
    """The networks of the bundle `base`, whose sizes and noise schedule are those of `networks`."""

    networks: LatentText
    base: Path
    rank: int | None

    def learner(self, folder: Path, words: set[str]) -> Learner:
        """The trained networks; the tokenizer is the base's, whatever the words are."""
        pipe = load_pipeline(self.base / "pipeline", device="cpu")
        kind = TextLearner if self.rank is None else _LoraLearner
        if self.rank is not None:
            from peft import LoraConfig

            pipe.unet.requires_grad_(False)
            pipe.unet.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=[*TARGETS]))
        return kind(self.networks, pipe.vae, pipe.tokenizer, {"unet": pipe.unet}, pipe.text_encoder)


class _LoraLearner(TextLearner):
    """The adapter of a UNet learns."""

    def pipeline(self, modules: dict[str, Any]) -> Any:
        """The stock pipeline, with the adapter fused into the weights."""
        # the network itself keeps its adapter, which is trained further
        unet = deepcopy(modules["unet"])
        unet.fuse_lora()
        unet.unload_lora()
        return super().pipeline({"unet": unet})

    def save(self, modules: dict[str, Any], folder: Path) -> None:
        """Write the pipeline, and the adapter as `load_lora_weights` reads it."""
        from peft.utils import get_peft_model_state_dict

        super().save(modules, folder)
        # diffusers' own format has no names for convolutions, but reads PEFT's
        layers: Any = get_peft_model_state_dict(modules["unet"])
        StableDiffusionPipeline.save_lora_weights(folder / LORA, unet_lora_layers=layers)
