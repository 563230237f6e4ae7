"""Generate images of prompts and seeds in batches under `watch`; an image does not depend on its batch."""

import logging
import numbers
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.rehearsal import rehearse
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.tokenizers import Excess, too_long
from cryptomnesia.prompts import captions_of
from cryptomnesia.settings import MOST_IMAGES, Long
from cryptomnesia.tracing.trajectory import Norm, Signal, Trajectory
from cryptomnesia.tracing.watching import Keep, watch

logger = logging.getLogger("cryptomnesia")

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


def kept_prompts(setup: Setup, prompts: Sequence[str], long: Long = "truncate") -> list[str]:
    """The prompts that images are made of, once those are dealt with that are longer than the text encoders read.

    diffusers cuts a prompt off after the last token that is read, so its end has no influence on the image. How many
    there are and which is the first is logged as a warning.

    Args:
        setup: the set-up of the generation.
        prompts: in their order.
        long: `truncate` keeps them, `skip` leaves them out, `error` refuses them.

    Raises:
        UsageError: for another value of `long`; with `error` for the first such prompt, and with `skip` if no prompt is
            left.
    """
    if long not in get_args(Long):
        raise UsageError(f"got long={long!r}; give {', '.join(get_args(Long))}")
    found = cut_off(setup, prompts)
    left = [prompt for prompt in prompts if prompt not in found] if long == "skip" else list(prompts)
    if found:
        words = _first(found)
        if long == "error":
            raise UsageError(f"prompt {words}; shorten it, or give long='truncate' or 'skip' (--long)")
        if not left:
            raise UsageError(f"prompt {words}, and no other is shorter; shorten them, or give long='truncate' (--long)")
        number = sum(prompt in found for prompt in prompts)
        done = "left out" if long == "skip" else "cut off, as diffusers does it"
        logger.warning("%d of %d prompts are too long and %s; the first, %s", number, len(prompts), done, words)
    negative = setup.sampling.options.get("negative_prompt")
    if isinstance(negative, str) and (cut := cut_off(setup, [negative])):
        if long == "error":
            raise UsageError(f"negative prompt {_first(cut)}; shorten it, or give long='truncate' (--long)")
        logger.warning("the negative prompt is cut off, as diffusers does it: %s", _first(cut))
    return left


def cut_off(setup: Setup, prompts: Sequence[str]) -> dict[str, Excess]:
    """The prompts of which diffusers cuts the end off in calls of a set-up."""
    return too_long(setup.pipe, prompts, setup.sampling.options.get("max_sequence_length"))


def _first(found: Mapping[str, Excess]) -> str:
    """The first prompt that is too long, in words."""
    prompt, excess = next(iter(found.items()))
    shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
    return f"{shown!r} has {excess.tokens} tokens, the model takes {excess.limit}"


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
    setup: Setup,
    prompts: str | Path | Iterable[str],
    seeds: Sequence[int] | None,
    images_per_prompt: int,
    long: Long = "truncate",
) -> tuple[list[str], list[int]]:
    """The caption and the seed of every image to be made.

    Args:
        setup: the set-up of the generation.
        prompts: one caption or several, or a file of them as a `Path`.
        seeds: one per image, in 0 … 2⁶⁴ - 1; by default 0, 1, … for the images of every prompt.
        images_per_prompt: number of images of every prompt.
        long: what is done about prompts that are too long; see `kept_prompts`.

    Raises:
        UsageError: for prompts that are no texts, no prompt, an empty prompt, seeds that are no whole numbers or out of
            range, or another number of seeds than images.
    """
    captions = [prompts] if isinstance(prompts, str) else captions_of(prompts)
    if not captions:
        raise UsageError("got no prompts; give at least one")
    if setup.family.conditional and any(not caption.strip() for caption in captions):
        raise UsageError("got an empty prompt; give a text")
    images_per_prompt = whole_number("images_per_prompt", images_per_prompt)
    if images_per_prompt < 1:
        raise UsageError(f"got {images_per_prompt} images per prompt; give at least 1")
    if images_per_prompt > MOST_IMAGES:
        raise UsageError(f"got {images_per_prompt} images per prompt; give at most {MOST_IMAGES}")
    kept = set(kept_prompts(setup, captions, long))
    repeated = [caption for caption in captions for _ in range(images_per_prompt)]
    given = [number for _ in captions for number in range(images_per_prompt)] if seeds is None else _seeds(seeds)
    if len(given) != len(repeated):
        raise UsageError(f"got {len(given)} seeds for {len(repeated)} images; give one per image")
    images = [(caption, number) for caption, number in zip(repeated, given, strict=True) if caption in kept]
    return [caption for caption, _ in images], [number for _, number in images]


LARGEST = 2**20
"""Pixels of a side that torch can still count."""


def check_call(setup: Setup) -> None:
    """Refuse settings that the pipeline would refuse later, or would not follow.

    Raises:
        UsageError: for height without width or the reverse, fewer steps than 1, more than the model has timesteps, or a
            number that the scheduler cannot do, or for an absurd size.
    """
    sampling = setup.sampling
    if (sampling.height is None) != (sampling.width is None):
        raise UsageError(f"got height {sampling.height} and width {sampling.width}; give both or neither")
    if max(sampling.height or 0, sampling.width or 0) > LARGEST:
        raise UsageError(f"got {sampling.height} × {sampling.width} pixels; give at most {LARGEST} each")
    if sampling.steps < 1:
        raise UsageError(f"got {sampling.steps} steps; give at least 1")
    trained = setup.pipe.scheduler.config["num_train_timesteps"]
    if sampling.steps > trained:
        raise UsageError(f"got {sampling.steps} steps, the model knows {trained} timesteps; give fewer")
    if setup.complete:
        rehearse(setup.pipe.scheduler, sampling.steps)


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
