"""What a guard would return in place of images that were made without one.

An audit makes every image once without a safeguard. With a policy it also wants to know what a guard would have
returned for the same request. Images that are clean are returned as they are, so the policy decides about the others
only. A policy that has the runs of the user's own call corrected may change every image, so then all are made again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.guarding.calls import Noise
from cryptomnesia.guarding.making import Maker
from cryptomnesia.guarding.policies import Open, Policy
from cryptomnesia.mitigations.base import Correction, Flagged, Mitigation, Remade, Studio, withheld
from cryptomnesia.tracing.counting import Counting
from cryptomnesia.verdicts import Verdict

Call = Mapping[str, Any]
"""Arguments of a call of the pipeline that makes one image from a generator of its own."""


@dataclass(frozen=True)
class Returned:
    """What a guard returns in place of one image.

    Attributes:
        verdict: on the image as it was first made, with what was done about it.
        image: another image, (3, H, W) in [0, 1]; None if the image is returned as it is, or withheld.
        p_value: of the image that is returned; NaN if it could not be judged, and where none is returned.
        step: which step of the policy made it, "" where there is nothing to say.
        evaluations: of the denoiser for this image behind the guard, in all.
    """

    verdict: Verdict
    image: Tensor | None
    p_value: float
    step: str
    evaluations: float


def corrects_runs(policy: Policy, mitigation: Mitigation | None) -> bool:
    """Whether a guard changes the runs of the user's own call, and so perhaps images that nobody would flag."""
    return policy.corrects and mitigation is not None and type(mitigation).correction is not Mitigation.correction


def returned(
    calls: Sequence[Call],
    images: Sequence[Tensor],
    verdicts: Sequence[Verdict],
    policy: Policy,
    mitigation: Mitigation | None,
    maker: Maker,
) -> list[Returned]:
    """What a guard returns in place of every image.

    Args:
        calls: that make the images.
        images: (3, H, W) each, as they were made without a guard.
        verdicts: on these images.
        policy: of the guard; it acts.
        mitigation: of the guard, None if the policy needs none.
        maker: makes images with the pipeline.
    """
    studio: Any = _Remembering(maker)
    correction = None
    if mitigation is not None and policy.corrects:
        correction = mitigation.correction(maker.references)
    if correction is None:
        whole, early, beside = maker.calibration.evaluations, maker.flagged_after, maker.detector.cost(maker.setup)
        found = [
            Returned(verdict, None, verdict.p_value, "", (early if verdict.flagged else whole) + beside)
            for verdict in verdicts
        ]
        judged: Sequence[Verdict] = verdicts
    else:
        found, judged = _corrected(calls, images, verdicts, correction, studio)
    rows = [row for row, verdict in enumerate(judged) if not (verdict.clean or verdict.action == "mitigated")]
    if not rows:
        return found
    with Counting(maker.setup.family.module) as counting:
        settled = policy.settle([_open(calls[row], judged[row]) for row in rows], studio, mitigation)
    spent = counting.samples / _branches(maker) / len(rows)
    for row, remade in zip(rows, settled, strict=True):
        verdict = remade.verdict
        if remade.output is None and verdict.action != "withheld":
            # a guard returns no image then, whatever the policy calls that
            verdict = withheld(verdict)
        found[row] = Returned(
            verdict=verdict if correction is None else _on_first(verdicts[row], verdict),
            image=None if remade.output is None else _image(remade.output, remade.place),
            p_value=studio.p_value(remade),
            step=remade.step,
            evaluations=found[row].evaluations + spent,
        )
    return found


def _corrected(
    calls: Sequence[Call],
    images: Sequence[Tensor],
    verdicts: Sequence[Verdict],
    correction: Correction,
    studio: Studio,
) -> tuple[list[Returned], list[Verdict]]:
    """What the user's own call gives under a correction, and the verdicts on its images."""
    with Counting(studio.setup.family.module) as counting:
        output, judged = studio.make(calls, correction)
    found = []
    for row, (first, verdict) in enumerate(zip(verdicts, judged, strict=True)):
        image = _image(output, row)
        same = torch.equal(image, images[row].float().cpu())
        found.append(
            Returned(
                verdict=first if same else _on_first(first, verdict),
                image=None if same else image,
                p_value=verdict.p_value,
                step="" if same else "correction",
                evaluations=counting.samples / _branches(studio) / len(calls),
            )
        )
    return found, judged


def _on_first(first: Verdict, done: Verdict) -> Verdict:
    """The verdict on an image that was made without a guard, with what a guard did that corrected its run."""
    names = ("severity", "corrected", "dropped", "retried", "action")
    reason = f"{first.reason}; the corrected run: {done.reason}"
    return replace(first, **{name: getattr(done, name) for name in names}, reason=reason)


def _open(call: Call, verdict: Verdict) -> Open:
    """An image as a policy gets it: as if it had been asked for alone, so that a batch does not decide its noise."""
    noise = Noise(call)
    return Open(Flagged(call, verdict), lambda attempt: {**call, **noise.other(0, attempt)})


def _image(output: Any, place: int) -> Tensor:
    """An image of a call's output, (3, H, W)."""
    return output.images[place].float().cpu()


def _branches(studio: Studio) -> int:
    """Samples of the denoiser in one evaluation of one image."""
    return 2 if studio.setup.guided else 1


class _Remembering:
    """A studio that remembers the verdicts on what it made, because the verdict of a policy is on the first image."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._made: list[tuple[Any, list[Verdict]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._maker, name)

    def make(self, calls: Sequence[Call], correction: Correction | None = None) -> tuple[Any, list[Verdict]]:
        """Make images and judge them."""
        output, verdicts = self._maker.make(calls, correction)
        self._made.append((output, verdicts))
        return output, verdicts

    def p_value(self, remade: Remade) -> float:
        """The p-value of a remade image; NaN where there is none, or where it was not made here."""
        for output, verdicts in self._made:
            if output is remade.output:
                return verdicts[remade.place].p_value
        return math.nan
