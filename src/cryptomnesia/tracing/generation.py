"""Generate images of prompts and seeds in batches under `watch`; an image does not depend on its batch."""

import numbers
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import defaults_of, silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.tokenizers import copied_tokenizers
from cryptomnesia.prompts import read_prompts
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


def whole_number(name: str, value: Any) -> int:
    """The value of an argument as an int.

    Args:
        name: of the argument.
        value: an int, or a whole number of another type, for instance of NumPy.

    Raises:
        UsageError: for everything else.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise UsageError(f"got {name}={reprlib.repr(value)}; give a whole number")


def real_number(name: str, value: Any) -> float:
    """The value of an argument as a float.

    Args:
        name: of the argument.
        value: a number, also one of NumPy.

    Raises:
        UsageError: for everything else, also for a text that shows a number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"got {name}={reprlib.repr(value)}; give a number")
    return float(value)


def captions_of(prompts: Path | Sequence[str]) -> list[str]:
    """Captions that were given as texts, or as a file.

    Raises:
        UsageError: for a file that cannot be read, or anything that is not a text.
    """
    if isinstance(prompts, Path):
        return read_prompts(prompts)
    try:
        captions = list(prompts)
    except TypeError:
        raise UsageError(
            f"got prompts={reprlib.repr(prompts)}; give a text, a list of texts, or the Path of a prompts file"
        ) from None
    for caption in captions:
        if not isinstance(caption, str):
            raise UsageError(f"got {reprlib.repr(caption)} among the prompts; give texts only")
    return captions


def _seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds as a list, once it is certain that generators take them."""
    try:
        given = [whole_number(f"seeds[{place}]", number) for place, number in enumerate(seeds)]
    except TypeError:
        raise UsageError(f"got seeds={reprlib.repr(seeds)}; give a list of whole numbers, one per image") from None
    for number in given:
        if not 0 <= number < 2**64:
            raise UsageError(f"got the seed {number}; give one in 0 … 2**64 - 1")
    return given


def images_of(
    setup: Setup, prompts: str | Path | Sequence[str], seeds: Sequence[int] | None, images_per_prompt: int
) -> tuple[list[str], list[int]]:
    """The caption and the seed of every image to be made.

    Args:
        setup: the set-up of the generation.
        prompts: one caption or several, or a file of them as a `Path`.
        seeds: one per image, in 0 … 2⁶⁴ - 1; by default 0, 1, … for the images of every prompt.
        images_per_prompt: number of images of every prompt.

    Raises:
        UsageError: for prompts that are no texts, no prompt, an empty prompt, a prompt that is too long, seeds that are
            no whole numbers or out of range, or another number of seeds than images.
    """
    captions = [prompts] if isinstance(prompts, str) else captions_of(prompts)
    if not captions:
        raise UsageError("got no prompts; give at least one")
    if setup.family.conditional and any(not caption.strip() for caption in captions):
        raise UsageError("got an empty prompt; give a text")
    images_per_prompt = whole_number("images_per_prompt", images_per_prompt)
    if images_per_prompt < 1:
        raise UsageError(f"got {images_per_prompt} images per prompt; give at least 1")
    check_prompts(setup.pipe, list(dict.fromkeys(captions)))
    repeated = [caption for caption in captions for _ in range(images_per_prompt)]
    given = [number for _ in captions for number in range(images_per_prompt)] if seeds is None else _seeds(seeds)
    if len(given) != len(repeated):
        raise UsageError(f"got {len(given)} seeds for {len(repeated)} images; give one per image")
    return repeated, given


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
    batch_size = whole_number("batch_size", batch_size)
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
        captions, drawn = list(prompts[start : start + batch_size]), list(seeds[start : start + batch_size])

        def tell(done: int, start: int = start, size: int = len(captions)) -> None:
            if progress is not None:
                progress(start + size * done / len(pipe.scheduler.timesteps))

        watching = watch(pipe, keep=keep, after_step=tell, norms=norms, signals=signals)
        with silent(pipe), watching as seen, (around or nullcontext)():
            try:
                output = pipe(
                    **setup.family.arguments(captions, setup.sampling),
                    generator=[torch.Generator().manual_seed(number) for number in drawn],
                    output_type=output_type,
                )
            except UsageError:
                raise
            # diffusers raises this for a value of an argument that it does not accept
            except ValueError as error:
                raise UsageError(f"{type(pipe).__name__} refuses: {' '.join(str(error).split())}") from error
        yield Batch(captions, drawn, output.images.float().cpu(), seen.trajectory)
