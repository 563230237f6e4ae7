"""A miniature of Stable Diffusion in a single file, with the names of tensors that the original code gives them."""

import re

from safetensors.torch import save_file

_UNET = [
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^down_blocks\.0\.resnets\.0\.", "input_blocks.1.0."),
    (r"^down_blocks\.0\.attentions\.0\.", "input_blocks.1.1."),
    (r"^down_blocks\.0\.downsamplers\.0\.conv\.", "input_blocks.2.0.op."),
    (r"^down_blocks\.1\.resnets\.0\.", "input_blocks.3.0."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^up_blocks\.0\.resnets\.(\d)\.", r"output_blocks.\1.0."),
    (r"^up_blocks\.0\.upsamplers\.0\.conv\.", "output_blocks.1.1.conv."),
    (r"^up_blocks\.1\.resnets\.(\d)\.", lambda found: f"output_blocks.{2 + int(found[1])}.0."),
    (r"^up_blocks\.1\.attentions\.(\d)\.", lambda found: f"output_blocks.{2 + int(found[1])}.1."),
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_VAE = [
    (r"^encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d)\.resnets\.", lambda found: f"decoder.up.{1 - int(found[1])}.block."),
    (r"^decoder\.up_blocks\.(\d)\.upsamplers\.0\.", lambda found: f"decoder.up.{1 - int(found[1])}.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
]


def _renamed(name, rules):
    for pattern, new in rules:
        if "transformer_blocks" in name and not pattern.startswith("^"):
            continue
        name = re.sub(pattern, new, name)
    return name


def write_single_file(pipe, path):
    """Write the weights of a miniature of Stable Diffusion to one file."""
    tensors = {f"model.diffusion_model.{_renamed(k, _UNET)}": v for k, v in pipe.unet.state_dict().items()}
    tensors |= {f"first_stage_model.{_renamed(k, _VAE)}": v for k, v in pipe.vae.state_dict().items()}
    tensors |= {
        f"cond_stage_model.transformer.text_model.{k.removeprefix('text_model.')}": v
        for k, v in pipe.text_encoder.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
