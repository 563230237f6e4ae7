"""Other noise, or parts of the caption that take turns, none of which brings the memory back. A method of this library.

A memorized caption stands for one picture, and whatever follows that caption finds it again. But without one or two of
its words it usually does not. `rephrasing` leaves such words out. Here no word need be lost: at every evaluation the
network is given the caption without some word, and at the next one the caption without another. Each of these parts
alone is ordinary, and together they say what the caption says.

A part has to be ordinary, and unlike the memory. Whether it is ordinary shows in the first evaluation of its run from
the image's own noise: an estimate x̂_0 with much detail, in nothing but noise, is a memory (see the detector
`early-detail`). With z the number of standard deviations of the reference runs by which the log detail of x̂_0 exceeds
their mean, a part is ordinary if its z is no higher than that of the share `usual` of the reference runs with the most
detail. A simple memory has little detail, however, so that a part can be ordinary and still bring it back. But the
memory is known: it is x̂_0 of the flagged run. So after two fifths of the run, the edges |∇x̂_0| of the part are
compared with those of the flagged run. Their correlation, in the square window of five eighths of the side where it is
highest, has to be at most `alike`. The same is asked of a run in which the parts take turns. If that is too much like
the memory, the part that is most like it is left out.

First the whole caption is tried, from other noise. A caption that has one picture only makes it again. One that does
not was flagged by chance, or has many pictures of which one is a memory; then no word need be missing. A caption whose
pictures are all like one another makes a picture like the flagged one again, although there is no memory, and loses
words.

Else parts are the caption without one word. If none of these is ordinary and unlike the memory, one more word is
left out: every part goes on from one of the few that came nearest. So several parts need not lack the same word. If the
parts are unlike the memory only with more than `most` words left out, the image is not made again, because nothing
else would stand between a copy and its user.

The memory is the flagged image where its noise is known: where the call gave every image a generator or latents, or
made one image with a generator. Else it is what the caption makes of other noise. Of many pictures, one of which is a
memory, that may be another one.

A word that all parts lack is lost; the verdict lists these words as `dropped`. Parts start from the same noise as
the flagged image. The text of the prompt stays as the user wrote it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Moments
from cryptomnesia.detectors.combined import LEAST_SPREAD, logarithm
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Prepared, Preparing, Remade, Studio, made
from cryptomnesia.mitigations.captions import candidates, draws_for, lacking, texts_of
from cryptomnesia.mitigations.side_by_side import Asked, Searching, side_by_side
from cryptomnesia.mitigations.turns import Turns
from cryptomnesia.pipelines.inputs import Inputs, unpacked
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.registry import create
from cryptomnesia.tracing.trajectory import evaluation
from cryptomnesia.tracing.watching import check_conditioned

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


COMPARED = 0.4
"""Share of the run after which a part is compared with the memory."""

WINDOW = 5 / 8
"""Side of the windows in which edges are compared, as a share of the shorter side of the latents."""

GO_ON = 3
"""Of so many parts one more word is left out, if none is ordinary and unlike the memory."""

TRIED = 2
"""For every part that may take turns, so many are compared with the memory at most."""

STRONGER = 0.5
"""Share `usual` of the stronger setting: parts are as plain as half of the reference runs."""


@dataclass(frozen=True)
class PartialCaptions(Preparing):
    """How to look for the parts that take turns.

    Attributes:
        usual: share of the reference runs whose first estimate has as much detail as that of an ordinary part may
            have, in (0, 1); a larger one wants plainer parts.
        alike: correlation of edges with the memory that a part may have, in (0, 1]; 1 compares nothing. It was chosen
            on `drawings`, where no part below it brought a memory back.
        parts: the most parts that take turns.
        most: the most words that a part may lack.
        other_noise: whether the whole caption is tried from other noise first; not where a call gives its latents.
    """

    usual: float = 0.05
    alike: float = 0.6
    parts: int = 4
    most: int = 3
    other_noise: bool = True

    name = "partial-captions"  # type: ignore[override]
    summary = "Other noise or, where that gives the memory again, parts of the caption that take turns."
    source = "this library"
    use_when = (
        "The picture should show what the prompt says as far as that brings no memory back. Only flagged images are "
        "made again."
    )
    avoid_when = (
        "Calls give `prompt_embeds` instead of captions in words, or the first estimate of the model is always sharp "
        "(few-step models, runs that begin from a picture); use `rephrasing` there."
    )

    def __post_init__(self) -> None:
        """Reject numbers with which nothing is compared or nothing takes turns."""
        if not 0 < self.usual < 1:
            raise UsageError(f"got usual={self.usual} for {self.name}; give a share between 0 and 1")
        if not 0 < self.alike <= 1:
            raise UsageError(f"got alike={self.alike} for {self.name}; give a correlation above 0, at most 1")
        for name in ("parts", "most"):
            if getattr(self, name) < 1:
                raise UsageError(f"got {name}={getattr(self, name)} for {self.name}; give at least 1")

    @property
    def stronger(self) -> "PartialCaptions | None":  # type: ignore[override]
        """Plainer parts, which may lack one more word; None behind that."""
        return replace(self, usual=STRONGER, most=self.most + 1) if self.usual < STRONGER else None

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, which have parts."""
        return frozenset({"captions"})

    def check(self, setup: "Setup") -> None:
        """Refuse pipelines whose captions cannot be changed during a run, or whose first estimate tells nothing.

        Raises:
            UsageError: saying why.
        """
        check_conditioned(setup.pipe)
        try:
            create("detector", "early-detail").check(setup)
        except UsageError as error:
            # the reason is the same, another remedy is not
            why = str(error).partition("; use ")[0].replace("early-detail", self.name)
            raise UsageError(f"{why}; use `rephrasing`") from None

    def cost(self, setup: "Setup") -> float:
        """One run, and a search among ten words, of which three are ordinary.

        The search takes the first evaluation without each of the words, and two fifths of the run for the memory, for
        every part that is compared with it, and for all parts in turn. Longer captions take more, and so do those of
        which one word is not enough. Other noise takes one evaluation where the memory comes back at once.
        """
        return (1 + 5 * COMPARED) * setup.sampling.steps + 11.0

    def from_same_noise(self) -> "PartialCaptions":
        """The mitigation without the trial of other noise."""
        return replace(self, other_noise=False)

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Find the parts of every caption."""
        found = side_by_side([_Search(self, image.call, studio).parts() for image in flagged], studio)
        parts = [one if isinstance(one, _Parts) else None for one in found]
        return Prepared(
            [image.call if one is None else one.call for image, one in zip(flagged, parts, strict=True)],
            Turns([one.inputs for one in parts if one is not None]),
            ["" if one is None else one.note for one in parts],
            [() if one is None else one.lost for one in parts],
            {row: why for row, why in enumerate(found) if isinstance(why, str)},
        )

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make the images again, one by one where their captions do not fit into one batch."""
        if not flagged:
            return []
        prepared = self.prepare(flagged, studio)
        turns: Any = prepared.correction
        if len(flagged) > 1 and not turns.fits:
            return [self.remake([image], studio)[0] for image in flagged]
        return made(prepared, flagged, studio)


class _Search:
    """The search for the parts of one caption."""

    def __init__(self, settings: PartialCaptions, call: Any, studio: Studio) -> None:
        """Take the call that makes the flagged image, and find out what is ordinary."""
        self._settings, self._call = settings, call
        details = logarithm(studio.references.norms["detail"])
        self._compared = evaluation(COMPARED, details.shape[1])
        self._usual = Moments.of(details, LEAST_SPREAD)
        self._most = self._usual.z_scores(details)[:, 0].quantile(1 - settings.usual).item()
        self._memory: Tensor | None = None

    def parts(self) -> "Searching[_Parts | str]":
        """The parts, or why there are none."""
        different = candidates(" ".join(dict.fromkeys(texts_of(self._call).values())), [])
        if not different:
            return "no words to leave out"
        if (whole := (yield from self._from_other_noise())) is not None:
            return whole
        lacked: list[tuple[str, ...]] = [(word,) for word in different]
        # one word is left at least
        for _ in range(min(self._settings.most, len(different) - 1)):
            found, nearest = yield from self._lacking(lacked)
            if found is not None:
                return found
            longer = ({*one, word} for one in nearest for word in different)
            lacked = list(
                dict.fromkeys(
                    tuple(word for word in different if word in one) for one in longer if len(one) > len(lacked[0])
                )
            )
        return "no part of the caption is ordinary and unlike the memory"

    def _from_other_noise(self) -> "Searching[_Parts | None]":
        """The whole caption from other noise, None if that is not ordinary and unlike the memory."""
        if not self._settings.other_noise or self._call.get("latents") is not None:
            return None
        # on the device of the others: diffusers draws the noise of a batch on one
        device = self._call["generator"].device
        call = {**self._call, "generator": draws_for(self._call, self._settings.name, device)}
        (inputs,), scores = yield from self._first([call])
        if not scores[0] <= self._most or not (yield from self._likeness([call]))[0] <= self._settings.alike:
            return None
        return _Parts(call, [inputs], [()])

    def _lacking(self, lacked: Sequence[tuple[str, ...]]) -> "Searching[tuple[_Parts | None, list[tuple[str, ...]]]]":
        """The parts that are ordinary and unlike the memory, None if there are none, and the words of the nearest."""
        most, calls = self._settings.parts, [lacking(self._call, dropped) for dropped in lacked]
        inputs, scores = yield from self._first(calls)
        order = scores.nan_to_num(nan=torch.inf).argsort(stable=True).tolist()
        ordinary = [place for place in order if scores[place] <= self._most][: TRIED * most]
        alike: dict[int, float] = {}
        good: list[int] = []
        while rest := ordinary[len(alike) :][:most]:
            alike |= dict(zip(rest, (yield from self._likeness([calls[place] for place in rest])), strict=True))
            unlike = [place for place, value in alike.items() if value <= self._settings.alike]
            good = _together(unlike, lacked, most)
            if len(good) == most and not _lost(lacked[place] for place in good):
                break
        kept = {place: inputs[place] for place in good}
        # parts that are unlike the memory can bring it back together
        while len(kept) > 1:
            (likeness,) = yield from self._likeness([self._call], [*kept.values()])
            if likeness <= self._settings.alike:
                break
            del kept[max(kept, key=alike.__getitem__)]
        nearest = [*sorted(alike, key=alike.__getitem__), *(place for place in order if place not in alike)][:GO_ON]
        found = _Parts(self._call, [*kept.values()], [lacked[place] for place in kept]) if kept else None
        return found, [lacked[place] for place in nearest]

    def _first(self, calls: Sequence[Any]) -> Searching[tuple[list[Inputs], Tensor]]:
        """The conditioning of calls, and how much more detail than usual each has at the first evaluation, (n,)."""
        runs = yield Asked(calls, 0)
        scores = [self._usual.z_scores(logarithm(run.norms["detail"]))[:, 0] for run in runs]
        return [run.step(0).cond_inputs for run in runs], torch.cat(scores)

    def _likeness(self, calls: Sequence[Any], parts: Sequence[Inputs] | None = None) -> Searching[list[float]]:
        """How much the estimates x̂_0 of calls are like the memory when they are compared, 0 if nothing is compared.

        Args:
            calls: the calls.
            parts: that take turns in each of them; None for the caption of the call.
        """
        if self._settings.alike == 1:
            return [0.0] * len(calls)
        if self._memory is None:
            self._memory, estimates = (yield from self._estimates([self._call, *calls])).split([1, len(calls)])
        else:
            estimates = yield from self._estimates(calls, parts)
        return edge_correlation(estimates, self._memory).tolist()

    def _estimates(self, calls: Sequence[Any], parts: Sequence[Inputs] | None = None) -> Searching[Tensor]:
        """The estimates x̂_0 of calls when they are compared with the memory, (n, C, h, w)."""
        steps = [run.step(self._compared) for run in (yield Asked(calls, self._compared, parts))]
        return torch.cat([unpacked(step.cond.x0.float(), step.cond_inputs) for step in steps])


def edge_correlation(estimates: Tensor, memory: Tensor) -> Tensor:
    """The correlation of the edges of estimates with those of a memory, in the window where it is highest.

    Args:
        estimates: (n, C, h, w).
        memory: (1, C, h, w).

    Returns:
        (n,) in [-1, 1]; NaN counts as 1, so that an estimate that is not finite is never unlike the memory.
    """
    side = max(2, round(WINDOW * (min(memory.shape[-2:]) - 1)))
    stride = max(1, side // 5)

    def windows(values: Tensor) -> Tensor:
        across, down = values.diff(dim=-1)[..., :-1, :], values.diff(dim=-2)[..., :-1]
        edges = (across.square() + down.square()).sum(dim=1).sqrt()
        found = edges.unfold(1, side, stride).unfold(2, side, stride).flatten(3).flatten(1, 2)
        return found - found.mean(dim=-1, keepdim=True)

    one, other = windows(estimates), windows(memory)
    lengths = (one.norm(dim=-1) * other.norm(dim=-1)).clamp_min(1e-9)
    return ((one * other).sum(dim=-1) / lengths).nan_to_num(nan=1.0).amax(dim=1)


def _lost(lacked: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The words that all of several parts lack, in the order of the first part."""
    first, *others = lacked
    return tuple(word for word in first if all(word in other for other in others))


def _together(unlike: Sequence[int], lacked: Sequence[tuple[str, ...]], most: int) -> list[int]:
    """Numbers of parts that take turns, at most `most`: the first, and again and again the one that loses fewest words.

    Args:
        unlike: numbers of parts to choose from, the best first.
        lacked: the words that each part lacks.
        most: how many are chosen at most.
    """
    chosen: list[int] = []
    for _ in range(min(most, len(unlike))):
        rest = [place for place in unlike if place not in chosen]
        chosen.append(min(rest, key=lambda place: len(_lost(lacked[one] for one in (*chosen, place)))))
    return chosen


@dataclass(frozen=True)
class _Parts:
    """The parts of one caption: conditioning of one image each, the words that each lacks, and the call to make."""

    call: Any
    inputs: list[Inputs]
    lacking: list[tuple[str, ...]]

    @property
    def lost(self) -> tuple[str, ...]:
        """The words that no part has."""
        return _lost(self.lacking)

    @property
    def note(self) -> str:
        """What was done, in words."""
        if self.lacking == [()]:
            return "from other noise"
        if len(self.lacking) == 1:
            return f"without {', '.join(self.lost)}"
        others = [" and ".join(word for word in one if word not in self.lost) for one in self.lacking]
        turns = f"in turn without {' or '.join(others)}"
        return f"{turns}, always without {', '.join(self.lost)}" if self.lost else turns
