"""Parts of the caption take turns, none of which brings the memory back alone. A method of this library.

A memorized caption stands for one picture, and whatever follows that caption finds it again. But without one or two of
its words it usually does not. `rephrasing` leaves such words out. Here no word need be lost: at every evaluation the
network is given the caption without some word, and at the next one the caption without another. Each of these parts
alone is ordinary, and together they say what the caption says.

Whether a part is ordinary shows in the first evaluation of its run from the image's own noise: an estimate x̂_0 with
much detail, in nothing but noise, is a memory (see the detector `early-detail`). With z the number of standard
deviations of the reference runs by which the log detail of x̂_0 exceeds their mean, a part is ordinary if its z is no
higher than that of the share `usual` of the reference runs with the most detail. Parts are the caption without one
word; if none of these is ordinary, the word without which z is lowest is left out of all parts, and the search is
repeated.

If only one part is ordinary, or none, its missing words are lost; the verdict lists them as `dropped`. The image is
made again from the same noise. The text of the prompt stays as the user wrote it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from cryptomnesia.detectors.base import Moments
from cryptomnesia.detectors.combined import LEAST_SPREAD, logarithm
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Correction, Flagged, Prepared, Preparing, Remade, Studio, made
from cryptomnesia.mitigations.captions import candidates, lacking, texts_of
from cryptomnesia.pipelines.inputs import Inputs, input_rows, same, together
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.registry import create
from cryptomnesia.tracing.trajectory import Trajectory
from cryptomnesia.tracing.watching import check_conditioned

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


STRONGER = 0.5
"""Share `usual` of the stronger setting: parts are as plain as half of the reference runs."""


@dataclass(frozen=True)
class PartialCaptions(Preparing):
    """How to look for the parts that take turns.

    Attributes:
        usual: share of the reference runs whose first estimate has as much detail as that of an ordinary part may
            have, in (0, 1); a larger one wants plainer parts.
        parts: the most parts that take turns.
        most: words that may be left out of all parts.
    """

    usual: float = 0.2
    parts: int = 4
    most: int = 3

    name = "partial-captions"  # type: ignore[override]
    summary = "The same seed again, under parts of the caption that take turns and bring no memory back."
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
        for name in ("parts", "most"):
            if getattr(self, name) < 1:
                raise UsageError(f"got {name}={getattr(self, name)} for {self.name}; give at least 1")

    @property
    def stronger(self) -> "PartialCaptions | None":  # type: ignore[override]
        """Plainer parts, of which one more word may be missing; None behind that."""
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
        """One run, and for ten words the first evaluation of a run without each of them."""
        return setup.sampling.steps + 10.0

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Find the parts of every caption."""
        usual = Moments.of(logarithm(studio.references.norms["detail"]), LEAST_SPREAD)
        ordinary = usual.z_scores(logarithm(studio.references.norms["detail"]))[:, 0]
        most = ordinary.quantile(1 - self.usual).item()
        turns = {
            row: found
            for row, image in enumerate(flagged)
            if (found := self._parts(image.call, studio, usual, most)) is not None
        }
        hopeless = {row: "no words to leave out" for row in range(len(flagged)) if row not in turns}
        lost = [turns[row].lost if row in turns else () for row in range(len(flagged))]
        notes = [turns[row].note if row in turns else "" for row in range(len(flagged))]
        kept = [turns[row].inputs for row in turns]
        return Prepared([image.call for image in flagged], Turns(kept), notes, lost, hopeless)

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make the images again, one by one where their captions do not fit into one batch."""
        if not flagged:
            return []
        prepared = self.prepare(flagged, studio)
        turns: Any = prepared.correction
        if len(flagged) > 1 and turns.parts and not turns.fits:
            return [self.remake([image], studio)[0] for image in flagged]
        return made(prepared, flagged, studio)

    def _parts(self, call: Any, studio: Studio, usual: Moments, most: float) -> "_Parts | None":
        """The parts of one caption, None if it has no words that could be left out."""
        text = " ".join(dict.fromkeys(texts_of(call).values()))
        dropped: list[str] = []
        while possible := candidates(text, dropped):
            runs = self._first(studio, [lacking(call, [*dropped, word]) for word in possible])
            scores = torch.cat([usual.z_scores(logarithm(run.norms["detail"]))[:, 0] for run in runs])
            order = scores.nan_to_num(nan=torch.inf).argsort(stable=True).tolist()
            good = [place for place in order if scores[place] <= most] or order[:1]
            if scores[good[0]] <= most or len(dropped) + 1 >= self.most or len(possible) == 2:
                kept = [
                    input_rows(runs[place // studio.batch].step(0).cond_inputs, [place % studio.batch])
                    for place in good[: self.parts]
                ]
                return _Parts(kept, tuple(dropped), tuple(possible[place] for place in good[: self.parts]))
            dropped.append(possible[order[0]])
        return None

    @staticmethod
    def _first(studio: Studio, calls: Sequence[Any]) -> list[Trajectory]:
        size = studio.batch
        return [studio.first(calls[start : start + size], 1) for start in range(0, len(calls), size)]


@dataclass(frozen=True)
class _Parts:
    """The parts of one caption: conditioning of one image each, and the words that none of them and that each lacks."""

    inputs: list[Inputs]
    dropped: tuple[str, ...]
    lacking: tuple[str, ...]

    @property
    def lost(self) -> tuple[str, ...]:
        """The words that no part has."""
        return self.dropped if len(self.lacking) > 1 else (*self.dropped, *self.lacking)

    @property
    def note(self) -> str:
        """What was done, in words."""
        if len(self.lacking) == 1:
            return f"without {', '.join(self.lost)}"
        others = f", always without {', '.join(self.dropped)}" if self.dropped else ""
        return f"in turn without {' or '.join(self.lacking)}{others}"


@dataclass
class Turns(Correction):
    """Gives every image another conditioning at every evaluation, one of several in turn.

    Attributes:
        parts: of every image, the conditioning of one image each, from the first evaluation of a run.
    """

    parts: list[list[Inputs]]
    _names: frozenset[str] = field(default=frozenset(), init=False)

    @property
    def fits(self) -> bool:
        """Whether the parts of all images fit into one batch, whatever their turn is."""
        return reduce(together, [part for parts in self.parts for part in parts]) is not None

    def condition(self, index: int, inputs: Inputs) -> Inputs:
        """The conditioning of the parts whose turn it is."""
        if index == 0:
            # what the captions decide, masks of their padding for instance; the rest may depend on the evaluation
            self._names = frozenset(
                name
                for row, parts in enumerate(self.parts)
                for part in parts
                for name, value in part.items()
                if not name.startswith("_") and not same(value, input_rows(inputs, [row]).get(name))
            )
        new: Any = reduce(together, [parts[index % len(parts)] for parts in self.parts])
        return {**inputs, **{name: new[name] for name in self._names}}
