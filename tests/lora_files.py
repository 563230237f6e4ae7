"""LoRAs of miniatures in files, as diffusers' training scripts write them."""

import peft
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers


def layers(network, *targets, seed):
    """The tensors of a LoRA that does something; the network is changed."""
    torch.manual_seed(seed)
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), init_lora_weights=False))
    return convert_state_dict_to_diffusers(peft.utils.get_peft_model_state_dict(network))


def write_lora(folder, pipe, *targets, seed, text=()):
    """Write a LoRA of a pipeline's UNet, and of its text encoder if targets in it are given."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers(pipe.unet, *targets, seed=seed),
        text_encoder_lora_layers=layers(pipe.text_encoder, *text, seed=seed) if text else None,
    )
