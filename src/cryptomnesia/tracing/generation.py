"""Generate prompts × seeds in batches under `watch`, with results that do not depend on the batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.trajectory import Signal, Trajectory
from cryptomnesia.tracing.watching import Keep, watch

Progress = Callable[[float], None]
"""Called with the number of images done; the one in the making counts in part."""


@dataclass(frozen=True)
class Batch:
    """Generated images with what was seen of them.

    Attributes:
        prompts: one per image.
        seeds: one per image.
        images: (B, 3, H, W) floats in [0, 1] on the CPU; final latents if they were not to be decoded.
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
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    tokenizers = [found for name in names if (found := getattr(pipe, name, None)) is not None]
    longest = signature(type(pipe).__call__).parameters.get("max_sequence_length")
    for prompt in prompts if tokenizers else ():
        # where a T5 encoder reads on behind CLIP's 77 tokens, nothing of the prompt is lost
        room = {
            min(each.model_max_length, longest.default)
            if longest is not None and "T5" in type(each).__name__
            else each.model_max_length: len(each(prompt, truncation=False, verbose=False).input_ids)
            for each in tokenizers
        }
        if all(length > limit for limit, length in room.items()):
            limit = max(room)
            shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
            raise UsageError(f"prompt {shown!r} has {room[limit]} tokens, the model takes {limit}; shorten it")


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    keep: Keep = (),
    signals: Sequence[Signal] = (),
    around: Callable[[], AbstractContextManager[Any]] | None = None,
    decode: bool = True,
    progress: Progress | None = None,
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
        signals: taken while the runs go on.
        around: makes a context manager, a mitigation say, for each call.
        decode: whether to turn latents into pictures; where only trajectories are wanted that is time lost.
        progress: called after every evaluation with the number of images done.

    Raises:
        UsageError: for a prompt that is too long, more steps than the model was trained with, or an option that the
            pipeline does not know.
    """
    check_prompts(pipe, list(dict.fromkeys(prompts)))
    if unknown := sampling.options.keys() - signature(type(pipe).__call__).parameters.keys():
        raise UsageError(f"a {type(pipe).__name__} takes no {', '.join(sorted(unknown))}; leave it out")
    if (sampling.height is None) != (sampling.width is None):
        raise UsageError(f"got height {sampling.height} and width {sampling.width}; give both or neither")
    trained = pipe.scheduler.config["num_train_timesteps"]
    if sampling.steps > trained:
        raise UsageError(f"got {sampling.steps} steps, the model knows {trained} timesteps; give fewer")
    adapter = adapter_for(pipe)
    # pipelines without an autoencoder have nothing to leave out
    output_type = "pt" if decode or not hasattr(pipe, "vae") else "latent"
    for start in range(0, len(prompts), batch_size):
        some, their = list(prompts[start : start + batch_size]), list(seeds[start : start + batch_size])

        def tell(done: int, start: int = start, size: int = len(some)) -> None:
            if progress is not None:
                progress(start + size * done / len(pipe.scheduler.timesteps))

        with silent(pipe), watch(pipe, keep=keep, after_step=tell, signals=signals) as seen, (around or nullcontext)():
            try:
                output = pipe(
                    **adapter.arguments(some, sampling),
                    generator=[torch.Generator().manual_seed(seed) for seed in their],
                    output_type=output_type,
                )
            # how diffusers says that it does not take an argument's value
            except ValueError as error:
                raise UsageError(f"{type(pipe).__name__} refuses: {' '.join(str(error).split())}") from error
        yield Batch(some, their, output.images.float().cpu(), seen.trajectory)


@contextmanager
def silent(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
