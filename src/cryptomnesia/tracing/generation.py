"""Generate prompts with seeds in batches under `watch`, with results that do not depend on the batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import defaults_of, silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.tokenizers import copied_tokenizers
from cryptomnesia.tracing.trajectory import Norm, Signal, Trajectory
from cryptomnesia.tracing.watching import Keep, watch

Progress = Callable[[float], None]
"""Called with the number of images that are done; one that is being made counts in part."""


@dataclass(frozen=True)
class Batch:
    """Generated images with what is known of them.

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
    tokenizers = list(copied_tokenizers(pipe).values())
    longest = defaults_of(pipe).get("max_sequence_length")
    for prompt in prompts if tokenizers else ():
        # where a T5 encoder reads on behind CLIP's 77 tokens, nothing of the prompt is lost
        lengths = {
            min(tokenizer.model_max_length, longest)
            if longest is not None and "T5" in type(tokenizer).__name__
            else tokenizer.model_max_length: len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            for tokenizer in tokenizers
        }
        if all(length > limit for limit, length in lengths.items()):
            limit = max(lengths)
            shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
            raise UsageError(f"prompt {shown!r} has {lengths[limit]} tokens, the model takes {limit}; shorten it")


def images_of(
    setup: Setup, prompts: str | Sequence[str], seeds: Sequence[int] | None, images_per_prompt: int
) -> tuple[list[str], list[int]]:
    """Caption and seed of every image to be made.

    Args:
        setup: of the generation.
        prompts: one caption or several.
        seeds: one per image; by default 0, 1, … for the images of every prompt.
        images_per_prompt: how often every prompt is made.

    Raises:
        UsageError: for no prompt, an empty one, one that is too long, or seeds that are too few or too many.
    """
    captions = [prompts] if isinstance(prompts, str) else list(prompts)
    if not captions:
        raise UsageError("got no prompts; give at least one")
    if setup.family.conditional and any(not caption.strip() for caption in captions):
        raise UsageError("got an empty prompt; give a text")
    if images_per_prompt < 1:
        raise UsageError(f"got {images_per_prompt} images per prompt; give at least 1")
    check_prompts(setup.pipe, list(dict.fromkeys(captions)))
    repeated = [caption for caption in captions for _ in range(images_per_prompt)]
    numbers = [number for _ in captions for number in range(images_per_prompt)] if seeds is None else list(seeds)
    if len(numbers) != len(repeated):
        raise UsageError(f"got {len(numbers)} seeds for {len(repeated)} images; give one per image")
    return repeated, numbers


def check_call(setup: Setup) -> None:
    """Refuse settings that the pipeline would refuse later, or not handle as they say.

    Raises:
        UsageError: for one dimension without the other, or more steps than the model was trained with.
    """
    sampling = setup.sampling
    if (sampling.height is None) != (sampling.width is None):
        raise UsageError(f"got height {sampling.height} and width {sampling.width}; give both or neither")
    if sampling.steps < 1:
        raise UsageError(f"got {sampling.steps} steps; give at least 1")
    trained = setup.pipe.scheduler.config["num_train_timesteps"]
    if sampling.steps > trained:
        raise UsageError(f"got {sampling.steps} steps, the model knows {trained} timesteps; give fewer")


def generate(
    setup: Setup,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int = 8,
    keep: Keep = (),
    norms: Sequence[Norm] = (),
    signals: Sequence[Signal] = (),
    around: Callable[[], AbstractContextManager[Any]] | None = None,
    decode: bool = True,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """Generate `prompts[i]` with `seeds[i]` for every i; settings are checked at the call.

    Every image has a CPU generator of its own, so it depends neither on device nor on batch size (up to the arithmetic
    of the batched kernels).

    Args:
        setup: the pipeline and the settings of its calls.
        prompts: one per image.
        seeds: one per image.
        batch_size: images per call of the pipeline.
        keep: evaluations whose tensors the trajectories keep.
        norms: recorded beside those that always are.
        signals: computed while the runs go on.
        around: makes a context manager for each call, for instance a mitigation.
        decode: whether to turn latents into pictures; where only trajectories are wanted that would be lost time.
        progress: called after every evaluation with the number of images done.

    Raises:
        UsageError: for settings that the pipeline does not take.
    """
    check_call(setup)
    if batch_size < 1:
        raise UsageError(f"got a batch size of {batch_size}; give at least 1")
    return _batches(
        setup,
        prompts,
        seeds,
        batch_size=batch_size,
        keep=keep,
        norms=norms,
        signals=signals,
        around=around,
        decode=decode,
        progress=progress,
    )


def _batches(
    setup: Setup,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int,
    keep: Keep,
    norms: Sequence[Norm],
    signals: Sequence[Signal],
    around: Callable[[], AbstractContextManager[Any]] | None,
    decode: bool,
    progress: Progress | None,
) -> Iterator[Batch]:
    """The batches of `generate`, once everything is checked."""
    pipe = setup.pipe
    # pipelines without an autoencoder have nothing to decode
    output_type = "pt" if decode or not hasattr(pipe, "vae") else "latent"
    for start in range(0, len(prompts), batch_size):
        captions, numbers = list(prompts[start : start + batch_size]), list(seeds[start : start + batch_size])

        def tell(done: int, start: int = start, size: int = len(captions)) -> None:
            if progress is not None:
                progress(start + size * done / len(pipe.scheduler.timesteps))

        watching = watch(pipe, keep=keep, after_step=tell, norms=norms, signals=signals)
        with silent(pipe), watching as seen, (around or nullcontext)():
            try:
                output = pipe(
                    **setup.family.arguments(captions, setup.sampling),
                    generator=[torch.Generator().manual_seed(number) for number in numbers],
                    output_type=output_type,
                )
            except UsageError:
                raise
            # how diffusers says that it does not take an argument's value
            except ValueError as error:
                raise UsageError(f"{type(pipe).__name__} refuses: {' '.join(str(error).split())}") from error
        yield Batch(captions, numbers, output.images.float().cpu(), seen.trajectory)
