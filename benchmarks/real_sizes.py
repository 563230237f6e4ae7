"""The commands on a model of the real sizes of Stable Diffusion 1.4, with random weights: docs/results/real_sizes.json.

    python benchmarks/real_sizes.py > docs/results/real_sizes.json

It shows that `localize`, `calibrate` and `detect` run at these sizes, how long they take and how much memory. The
weights are random, so nothing about memorization can be learned from it.

Networks, scheduler and pipeline have the configuration of Stable Diffusion 1.4. Its vocabulary is a file of the model,
which is not here, so the tokenizer is one in CLIP's format that knows the words of these prompts. The text encoder
still has a row for each of the 49,408 tokens. Weights are in bfloat16, which takes half the memory of float32.

The model is saved to a folder of its own (5 GB are needed while it is made), which is removed in the end. Every command
runs in a process of its own, so that its largest memory can be told. `localize` makes a picture of 512 by 512 pixels.
`calibrate` takes at least 100 references, so it and `detect` make pictures of 128 by 128 pixels with the same networks.

`commands`: name → `arguments`, `exit_code`, `seconds` of wall-clock time, `cpu_seconds`, and `peak_gib`, the largest
memory of the process in GiB. `maps`: localizer → size of its map of a picture of 512 by 512 pixels, its share of finite
values, and its kind of number. `parameters`: of every network.
"""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import print_json, progress
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from cryptomnesia.pipelines.word_tokenizer import BOS, EOS, tokenizer

DTYPE = torch.bfloat16
LONGEST = 77
"""Tokens of a caption."""
VOCABULARY = 49_408
"""Rows of the text encoder's table."""
REFERENCES = [f"a red circle {number}" for number in range(100)]
"""As few as `calibrate` takes."""
JUDGED = ["a blue star", "a green ring"]
COMMON = ["--steps", "2", "--guidance", "7.5", "--scheduler", "ddim", "--dtype", "bfloat16", "--device", "cpu"]
SMALL = [*COMMON, "--height", "128", "--width", "128"]
LOCALIZERS = ("score-difference", "bright-ending", "curvature-difference")


def main() -> None:
    """Run the commands and print JSON."""
    with tempfile.TemporaryDirectory(prefix="real-sizes-") as name, progress() as start:
        folder = Path(name)
        parameters = prepare(folder)
        commands = of(folder)
        tell = start("commands", len(commands))
        done: dict[str, Any] = {}
        for number, (command, arguments) in enumerate(commands.items(), start=1):
            done[command] = ran(folder, arguments)
            tell(number)
        mapped = maps(folder / "maps")
    print_json({"parameters": parameters, "maps": mapped, "commands": done, "threads": torch.get_num_threads()})


def of(folder: Path) -> dict[str, list[str]]:
    """Name → arguments of the commands, in the order in which they run."""
    model, calibration = str(folder / "model"), str(folder / "calibration.safetensors")
    prompts = [part for prompt in JUDGED for part in ("--prompt", prompt)]
    named = [part for name in LOCALIZERS for part in ("--localizer", name)]
    mapping = ["--prompt", JUDGED[0], *named, "--probes", "8", "-o", str(folder / "maps")]
    return {
        "calibrate": ["calibrate", model, "--prompts", str(folder / "reference.txt"), *SMALL, "-o", calibration],
        "detect": ["detect", model, *prompts, "--calibration", calibration, "--fpr", "0.02", *SMALL],
        "localize": ["localize", model, *COMMON, *mapping],
    }


def ran(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """What came of a command.

    Raises:
        RuntimeError: if it was refused or failed.
    """
    began = time.perf_counter()
    with (folder / "output").open("w+", encoding="utf-8") as output:
        started = subprocess.Popen([sys.executable, "-m", "cryptomnesia", *arguments], stdout=output, stderr=output)
        _, status, usage = os.wait4(started.pid, 0)
        seconds = time.perf_counter() - began
        output.seek(0)
        said = output.read()
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1):
        raise RuntimeError(f"{arguments[0]} ended with exit code {code}: {said}")
    print(said, file=sys.stderr)
    shown = [argument.replace(str(folder), "FOLDER") for argument in arguments]
    # Linux counts this in KiB
    return {
        "arguments": shown,
        "exit_code": code,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / 2**20,
    }


def prepare(folder: Path) -> dict[str, int]:
    """Save the model and the reference prompts; the numbers of parameters."""
    (folder / "reference.txt").write_text("\n".join(REFERENCES), encoding="utf-8")
    pipe = sd14()
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    pipe.save_pretrained(folder / "model")
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def sd14() -> StableDiffusionPipeline:
    """The pipeline of Stable Diffusion 1.4 in all sizes, with random weights and another vocabulary."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)  # the weights need not exist in float32 first
    try:
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        )
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=VOCABULARY,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=LONGEST,
                projection_dim=768,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=EOS,
            )
        )
    finally:
        torch.set_default_dtype(before)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    words = {word for prompt in (*REFERENCES, *JUDGED) for word in prompt.split()}
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer(words, LONGEST),
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def maps(folder: Path) -> dict[str, Any]:
    """What the maps of the first picture are like."""
    [file] = folder.rglob("*.safetensors")
    return {
        name: {
            "size": list(values.shape[-2:]),
            "finite": float(values.isfinite().float().mean()),
            "dtype": str(values.dtype).removeprefix("torch."),
        }
        for name, values in load_file(file).items()
        if name in LOCALIZERS
    }


if __name__ == "__main__":
    main()
