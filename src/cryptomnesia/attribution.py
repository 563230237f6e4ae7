"""The verb `attribute`: which words of its caption bring a picture.

Two measures, both of ‖ε_c − ε_u‖, the guidance magnitude, at one evaluation of the run and on the same noisy picture:

- *Leaving out*: the caption is read again without the word. What the magnitude loses is what the word gives, as a
  share; below 0 the word takes something away. Text encoders mix the words, so all other words are read differently.
- *Gradient* (token attribution, Wen et al., ICLR 2024, arXiv:2407.21720): the norm of the gradient of the magnitude
  with respect to the embeddings of the word's tokens, as a share of all words. Wen et al. take the tokens behind the
  text encoder, where in CLIP a word has passed on to the tokens that follow it; here it is the tokens before it. One
  gradient serves all words. It says how a small change would act, and no word is left out by a small change. The
  changes are relative to the size of the embeddings, so that several text encoders count alike. A word of several
  tokens has the norm of all of them.

Where they name different words, both are shown. On the bundled models leaving out finds the invented name of planted
captions more often, and its evaluation was chosen there (docs/how-to/words.md). Of a caption that is cut off, words
behind the end move into what is read when a word is left out, and count as a part of what that word gave.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import check_place, wide
from cryptomnesia.localizers.baseline import baseline_for
from cryptomnesia.pipelines.inputs import carried, input_rows
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Long
from cryptomnesia.tracing.generation import Batch, Progress, check_call, generate, images_of
from cryptomnesia.tracing.reading import conditioning, differentiable, token_spans
from cryptomnesia.tracing.trajectory import Place, Step, Trajectory
from cryptomnesia.words import spans, without

if TYPE_CHECKING:
    from cryptomnesia.pipelines.denoiser import Denoiser

logger = logging.getLogger("cryptomnesia")

STEP: Place = 0.3
"""The evaluation at which words are compared, as a share of the run."""


@dataclass(frozen=True)
class Word:
    """A word of a caption.

    Attributes:
        text: the word, as it is first written in the caption; in capitals it counts as the same word.
        left_out: the share of the guidance magnitude that is lost without the word, ≤ 1; NaN where the network's output
            is not finite.
        gradient: the word's share of the gradient with respect to its tokens, in [0, 1]; None where no gradient can be
            computed. A warning says why.
    """

    text: str
    left_out: float
    gradient: float | None


@dataclass(frozen=True)
class Attributed:
    """A generated image, and what the words of its caption bring.

    Attributes:
        prompt: the caption.
        seed: of the image.
        image: (3, H, W) in [0, 1].
        words: the different words in their order; empty for a caption of fewer than two different words.
    """

    prompt: str
    seed: int
    image: Tensor
    words: tuple[Word, ...]


def attribute(
    pipe: Any,
    prompts: str | Path | Iterable[str],
    *,
    seeds: Sequence[int] | None = None,
    images_per_prompt: int = 1,
    step: Place = STEP,
    long: Long = "truncate",
    batch_size: int = 8,
    progress: Progress | None = None,
    **call: Any,
) -> Iterator[Attributed]:
    """Generate prompts, and measure what every word of a caption brings to its picture.

    Args:
        pipe: a pipeline of a known family that takes captions.
        prompts: one caption or several, or a file of them as a `Path`; `read_prompts` reads another column of a file.
        seeds: one per image; 0, 1, … for the images of every prompt by default.
        images_per_prompt: images to generate for every prompt.
        step: the evaluation at which words are compared: its number, or a share of the run in [0, 1).
        long: what is done about prompts that are longer than the text encoders read: `truncate` cuts them off, as
            diffusers does it, `skip` leaves them out, and `error` refuses them.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.
        **call: arguments of every call, named as the pipeline names them; its own defaults for the rest.

    Returns:
        An iterator over the images, in the order of prompts and seeds. Images are generated while it is iterated over.

    Raises:
        UsageError: at the call, before anything is generated, for arguments that do not fit together, or a pipeline
            that takes no captions.

    Example:
        for found in attribute(pipe, ["a red circle on a blue ground"]):
            print(max(found.words, key=lambda word: word.left_out).text)
    """
    setup = Setup.of(pipe, call)
    check_call(setup)
    check_captions(setup)
    check_place(setup, step)
    captions, numbers = images_of(setup, prompts, seeds, images_per_prompt, long)
    batches = generate(setup, captions, numbers, batch_size=batch_size, keep={step}, progress=progress)

    def attributed() -> Iterator[Attributed]:
        for batch in batches:
            found = words_of(setup, batch, range(len(batch.prompts)), batch_size=batch_size, step=step)
            for row, words in enumerate(found):
                yield Attributed(batch.prompts[row], batch.seeds[row], batch.images[row], words)

    return attributed()


def check_captions(setup: Setup) -> None:
    """Refuse a model whose pictures come from no words, or whose network cannot be evaluated beside a run.

    Raises:
        UsageError: naming the pipeline, or what is in the way.
    """
    if not setup.family.conditional:
        raise UsageError(
            f"got a {type(setup.pipe).__name__}, which takes no captions, so there are no words to compare; leave out "
            "what asks for words"
        )
    setup.family.denoiser()


def cost(setup: Setup, captions: Sequence[str]) -> float:
    """Evaluations of the network for one of some captions, on average: without each of its words, and one gradient."""
    counts = [len(_different(caption)) for caption in captions]
    words = sum(counts) / max(1, len(counts))
    branch = 0.5 if setup.guided else 1.0
    # to read captions the pipeline is called, which ends after one evaluation; a gradient costs about two evaluations
    return (1 + words) * (1 + branch) + 1 + 3 * branch + 2.0 * (not setup.guided)


def words_of(
    setup: Setup, batch: Batch, rows: Iterable[int], *, batch_size: int, step: Place = STEP
) -> list[tuple[Word, ...]]:
    """The words of the captions of some images of a batch.

    Args:
        setup: of the generation.
        batch: generated images, with the tensors of evaluation `step`.
        rows: numbers of the images.
        batch_size: captions that are read at once.
        step: the evaluation.
    """
    return [_words(setup, batch.prompts[row], batch.trajectory.rows([row]), batch_size, step) for row in rows]


def _words(setup: Setup, prompt: str, run: Trajectory, batch_size: int, place: Place) -> tuple[Word, ...]:
    """The words of the caption of one image."""
    different = _different(prompt)
    if len(different) < 2:
        return ()
    step = run.step(place)
    denoiser = setup.family.denoiser()
    if step.uncond is None:
        empty = baseline_for(setup, "empty", [prompt])
        assert empty is not None
        usual = empty.at(step).epsilon(step.cond.x, step.level)
    else:
        usual = step.uncond.epsilon
    texts = [prompt, *(without(prompt, [word]) for word in different.values())]
    magnitudes = []
    for first in range(0, len(texts), batch_size):
        part = texts[first : first + batch_size]
        beside = input_rows(step.cond_inputs, [0] * len(part))
        inputs = carried(conditioning(setup.pipe, part, setup.sampling), beside)
        with torch.no_grad():
            magnitudes += _magnitude(denoiser, inputs, step, usual, len(part)).tolist()
    whole, *shorter = magnitudes
    # a caption that changes nothing owes nothing to any word
    lost = [1 - left / whole if whole != 0 else 0.0 for left in shorter]
    gradient = _gradient(setup, prompt, step, denoiser, usual)
    shares = [None if gradient is None else gradient[key] for key in different]
    return tuple(map(Word, different.values(), lost, shares))


def _different(prompt: str) -> dict[str, str]:
    """The different words of a caption: in small letters → as it is first written."""
    found: dict[str, str] = {}
    for start, end in spans(prompt):
        found.setdefault(prompt[start:end].casefold(), prompt[start:end])
    return found


def _magnitude(denoiser: "Denoiser", inputs: Any, step: Step, usual: Tensor, count: int) -> Tensor:
    """‖ε_c − ε_u‖ for the conditionings of `count` captions on the same noisy picture, (count,)."""
    x = step.cond.x.expand(count, *step.cond.x.shape[1:])
    # unlike `norms`, with a gradient
    return torch.linalg.vector_norm(wide(denoiser(x, step.level, inputs).epsilon - usual).flatten(1), dim=1)


def _gradient(setup: Setup, prompt: str, step: Step, denoiser: "Denoiser", usual: Tensor) -> dict[str, float] | None:
    """Word in small letters → its share of the gradient; None where there is no gradient, with a warning."""
    try:
        inputs, embedded = differentiable(setup.pipe, prompt, setup.sampling)
        places = [(layer, found) for layer in embedded if (found := token_spans(setup.pipe, layer, prompt)) is not None]
        if unlike := {layer.encoder for layer in embedded if layer.of_tokens} - {layer.encoder for layer, _ in places}:
            return _no_gradient(f"the words are not found among the tokens that {', '.join(sorted(unlike))} reads")
        with torch.enable_grad():
            magnitude = _magnitude(denoiser, carried(inputs, step.cond_inputs), step, usual, 1).sum()
        if not places or not magnitude.requires_grad:
            return _no_gradient("the pipeline reads captions in a way that cannot be followed")
        gradients = torch.autograd.grad(magnitude, [layer.values for layer, _ in places], allow_unused=True)
    # too little memory, weights on several devices, and operations without a gradient
    except (RuntimeError, NotImplementedError) as error:
        return _no_gradient(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    squared: dict[str, float] = dict.fromkeys(_different(prompt), 0.0)
    for (layer, found), gradient in zip(places, gradients, strict=True):
        if gradient is None:
            continue
        size = layer.values.detach()[0].double().square().mean().item()
        for start, end in spans(prompt):
            inside = [at for at, (left, right) in enumerate(found) if left < end and right > start]
            squared[prompt[start:end].casefold()] += size * gradient[0, inside].double().square().sum().item()
    total = sum(value**0.5 for value in squared.values())
    if not 0 < total < float("inf"):
        return _no_gradient("it is zero for all words, or not finite")
    return {key: value**0.5 / total for key, value in squared.items()}


@cache
def _no_gradient(reason: str) -> None:
    """Say once why there is no gradient."""
    logger.warning("no gradient of words: %s", reason)
