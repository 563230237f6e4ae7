"""Generate images of prompts and seeds in batches under `watch`; an image does not depend on its batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import defaults_of, silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.tokenizers import copied_tokenizers
from cryptomnesia.tracing.trajectory import Norm, Signal, Trajectory
from cryptomnesia.tracing.watching import Keep, watch

Made = TypeVar("Made")

Progress = Callable[[float], None]
"""Called with the number of images that are done; an image that is being made counts as the part that is done."""


@dataclass(frozen=True)
class Batch:
    """Generated images and the record of their runs.

    Attributes:
        prompts: one per image.
        seeds: one per image.
        images: (B, 3, H, W) floats in [0, 1] on the CPU; the final latents if nothing was decoded.
        trajectory: the record of the B runs.
    """

    prompts: list[str]
    seeds: list[int]
    images: Tensor
    trajectory: Trajectory


def check_prompts(pipe: Any, prompts: Sequence[str]) -> None:
    """Refuse prompts that are longer than the pipeline's text encoders read; diffusers would only log a warning.

    Raises:
        UsageError: with the first such prompt, its number of tokens and the number that the model takes.
    """
    tokenizers = list(copied_tokenizers(pipe).values())
    longest = defaults_of(pipe).get("max_sequence_length")
    for prompt in prompts if tokenizers else ():
        # a prompt that is too long for CLIP is read as a whole if a T5 encoder of the same pipeline reads more tokens
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
    """The caption and the seed of every image to be made.

    Args:
        setup: the set-up of the generation.
        prompts: one caption or several.
        seeds: one per image; by default 0, 1, … for the images of every prompt.
        images_per_prompt: number of images of every prompt.

    Raises:
        UsageError: for no prompt, an empty prompt, a prompt that is too long, or another number of seeds than images.
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
    """Refuse settings that the pipeline would refuse later, or would not follow.

    Raises:
        UsageError: for height without width or the reverse, fewer steps than 1, or more than the model has timesteps.
    """
    sampling = setup.sampling
    if (sampling.height is None) != (sampling.width is None):
        raise UsageError(f"got height {sampling.height} and width {sampling.width}; give both or neither")
    if sampling.steps < 1:
        raise UsageError(f"got {sampling.steps} steps; give at least 1")
    trained = setup.pipe.scheduler.config["num_train_timesteps"]
    if sampling.steps > trained:
        raise UsageError(f"got {sampling.steps} steps, the model knows {trained} timesteps; give fewer")


def checked(batches: Iterable[Made], check: Callable[[], None], *, images: int, batch_size: int) -> Iterator[Made]:
    """The batches of an iterable, where `check` is called before every batch is made.

    Between two batches the caller of an iterator can do anything, also change the pipeline.

    Args:
        batches: makes a batch whenever it is asked for the next one.
        check: raises an error if the pipeline must not be called.
        images: number of all images. Without it, the check would also run after the last batch.
        batch_size: images per batch.
    """
    remaining = iter(batches)
    for _ in range(0, images, batch_size):
        check()
        yield next(remaining)


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

    Every image has its own generator on the CPU, so its noise depends neither on the device nor on the batch size. What
    is left are the rounding differences between kernels for batches of different sizes.

    Args:
        setup: the pipeline and the settings of its calls.
        prompts: one per image.
        seeds: one per image.
        batch_size: images per call of the pipeline.
        keep: evaluations whose tensors the trajectories keep.
        norms: further norms to record.
        signals: signals to compute during the runs.
        around: makes a context manager that is entered around every call, for instance a mitigation.
        decode: whether to decode latents into pictures; without that a generation takes less time.
        progress: called after every evaluation with the number of images done.

    Raises:
        UsageError: for settings that the pipeline refuses.
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
            # diffusers raises this for a value of an argument that it does not accept
            except ValueError as error:
                raise UsageError(f"{type(pipe).__name__} refuses: {' '.join(str(error).split())}") from error
        yield Batch(captions, numbers, output.images.float().cpu(), seen.trajectory)
