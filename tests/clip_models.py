"""A CLIP model with random weights that knows the words of the miniatures."""

import torch
from transformers import CLIPConfig, CLIPModel

from cryptomnesia.testing.miniatures.parts import WIDTH, text_config, tokens

PROCESSOR = """{
  "image_processor_type": "CLIPImageProcessor", "do_center_crop": true, "do_normalize": true, "do_rescale": true,
  "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3,
  "crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}
}"""


def network(seed=0):
    """Two layers for pictures of 16×16 pixels."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
    }
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text_config().to_dict(), vision_config=vision, projection_dim=WIDTH)
    return CLIPModel(config).eval()


def save(folder, *, seed=0, tokenizer=True, processor=True):
    """Save the model as transformers does it, perhaps without parts of it."""
    network(seed).save_pretrained(folder)
    if tokenizer:
        tokens().save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(PROCESSOR)
    return folder
