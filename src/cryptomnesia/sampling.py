"""Generate prompts × seeds in batches under `watch`, with results that do not depend on the batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.trajectory import Keep, Trajectory, watch


@dataclass(frozen=True)
class Sampling:
    """The settings of a generation that a calibration is bound to.

    Attributes:
        steps: solver steps.
        guidance: guidance scale; 1 switches the unconditional branch off.
        height: of the picture in pixels, the model's own when None.
        width: likewise.
    """

    steps: int = 50
    guidance: float = 7.5
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Batch:
    """Generated images with what was seen of them.

    Attributes:
        prompts: one per image.
        seeds: one per image.
        images: (B, 3, H, W) floats in [0, 1] on the CPU.
        trajectory: of these B images.
    """

    prompts: list[str]
    seeds: list[int]
    images: Tensor
    trajectory: Trajectory


def check_prompts(pipe: Any, prompts: Sequence[str]) -> None:
    """Refuse prompts that the pipeline's tokenizer would cut short without a word.

    Raises:
        UsageError: naming the prompt and both lengths.
    """
    tokenizers = [pipe.tokenizer, getattr(pipe, "tokenizer_2", None)]
    for tokenizer in filter(None, tokenizers):
        for prompt in prompts:
            length = len(tokenizer(prompt, truncation=False).input_ids)
            if length > tokenizer.model_max_length:
                shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
                raise UsageError(
                    f"prompt {shown!r} has {length} tokens, the model takes {tokenizer.model_max_length}; shorten it"
                )


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    keep: Keep = (),
    around: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Iterator[Batch]:
    """Generate `prompts[i]` with `seeds[i]` for every i.

    Every image has a CPU generator of its own, so it depends neither on device nor on batch size
    (up to the arithmetic of the batched kernels).

    Args:
        pipe: a pipeline of a known family.
        prompts: one per image.
        seeds: one per image.
        sampling: the settings.
        batch_size: images per call of the pipeline.
        keep: evaluations whose tensors the trajectories keep.
        around: makes a context manager, a mitigation say, for each call.
    """
    check_prompts(pipe, list(dict.fromkeys(prompts)))
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), batch_size):
        some, their = list(prompts[start : start + batch_size]), list(seeds[start : start + batch_size])
        with watch(pipe, keep=keep) as seen:
            images = _call(pipe, some, their, sampling, around)
        yield Batch(some, their, images, seen.trajectory)


def _call(
    pipe: Any,
    prompts: list[str],
    seeds: list[int],
    sampling: Sampling,
    around: Callable[[], AbstractContextManager[Any]] | None,
) -> Tensor:
    def call() -> Tensor:
        output = pipe(
            prompts,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            height=sampling.height,
            width=sampling.width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        )
        return output.images.float().cpu()

    if around is None:
        return call()
    with around():
        return call()
