"""The verb `detect`: which generated images are memorized and, on request, where, and what to show instead."""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.attribution import STEP, Word, check_captions, words_of
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.likeness import scores_unlike, texts_unlike
from cryptomnesia.calibration.stored import Calibration, resolved
from cryptomnesia.detectors import Detector
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.guarding.making import Maker
from cryptomnesia.guarding.policies import Policy
from cryptomnesia.guarding.settling import Call, Returned, returned
from cryptomnesia.localization import Located
from cryptomnesia.localizers import Localizer, Map
from cryptomnesia.localizers import localizer as localizer_of
from cryptomnesia.localizers.mapping import maps_of, places
from cryptomnesia.mitigations import Flagged, Mitigation, Remade, default_mitigation
from cryptomnesia.mitigations import mitigation as mitigation_of
from cryptomnesia.mitigations.base import check_fit
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Long
from cryptomnesia.tracing.generation import Batch, Progress, check_call, checked, cut_off, generate, images_of
from cryptomnesia.tracing.trajectory import Trajectory
from cryptomnesia.verdicts import Verdict

logger = logging.getLogger("cryptomnesia")


@dataclass(frozen=True)
class Finding:
    """What was found out about one generated image.

    Attributes:
        prompt: the caption of the image.
        seed: the seed of the image.
        verdict: whether the image is flagged as memorized and, if a mitigation was asked for, what that did.
        image: (3, H, W) in [0, 1].
        trajectory: norms and signals of the image's run, (1, …) each, without tensors.
        located: the image with its map, if it is flagged and a localizer was asked for; else None.
        instead: another image, made by the mitigation, (3, H, W) in [0, 1], if the image is flagged and a mitigation
            was asked for; else None, and also if the mitigation found no image that may be shown.
        truncated: whether the prompt is longer than the text encoders read, so that its end had no influence.
        words: what every word of the prompt brings, if the image is flagged and that was asked for; else None.
        returned: what a guard returns in its place, if a policy was given; else None.
    """

    prompt: str
    seed: int
    verdict: Verdict
    image: Tensor
    trajectory: Trajectory
    located: Located | None = None
    instead: Tensor | None = None
    truncated: bool = False
    words: tuple[Word, ...] | None = None
    returned: Returned | None = None


def detect(
    pipe: Any,
    prompts: str | Path | Iterable[str],
    *,
    seeds: Sequence[int] | None = None,
    images_per_prompt: int = 1,
    calibration: Calibration | str | Path | None = None,
    detector: str | Any = "auto",
    fpr: float = 0.01,
    localizer: str | Any | None = None,
    mitigation: str | Any | None = None,
    words: bool = False,
    long: Long = "truncate",
    batch_size: int = 8,
    progress: Progress | None = None,
    **call: Any,
) -> Iterator[Finding]:
    """Generate prompts and judge every image; map the flagged images and make them again, if asked for.

    A warning is logged if the prompts, or in the end their scores, differ visibly from those of the calibration.

    Args:
        pipe: a pipeline of a known family.
        prompts: one caption or several, or a file of them as a `Path`; `read_prompts` reads another column of a file.
        seeds: one per image; 0, 1, … for the images of every prompt by default.
        images_per_prompt: images to generate for every prompt.
        calibration: for this set-up, as an object or a file; one for another set-up is refused. By default
            `calibration.safetensors` in the folder that the pipeline was loaded from.
        detector: name or object of the detector; `auto` is the default of the pipeline's family.
        fpr: false-positive rate at which an image is flagged, in (0, 1).
        localizer: name or object of the localizer that maps flagged images; `auto` is the default of the pipeline's
            family. None makes no maps.
        mitigation: name or object of the mitigation that makes flagged images again; `auto` is the default of the
            pipeline's family, if one works in the set-up. None makes no image again.
        words: whether to measure which words of its prompt bring a flagged image (`cryptomnesia.attribution`).
        long: what is done about prompts that are longer than the text encoders read: `truncate` cuts them off, as
            diffusers does it, `skip` leaves them out, and `error` refuses them. A warning says how many there are.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.
        **call: arguments of every call, named as the pipeline names them; its own defaults for the rest.

    Returns:
        An iterator over the findings, one per image, in the order of prompts and seeds. Images are generated while it
        is iterated over.

    Raises:
        UsageError: at the call, before anything is generated, for arguments that do not fit together; and before the
            next batch, if the pipeline was changed meanwhile so that the calibration does not fit any more.

    Example:
        for finding in detect(pipe, ["a red circle on a blue ground"]):
            print(finding.prompt, finding.verdict.p_value, finding.verdict.flagged)
    """
    setup = Setup.of(pipe, call)
    check_call(setup)
    captions, numbers = images_of(setup, prompts, seeds, images_per_prompt, long)
    calibration = resolved(calibration, pipe)
    examination = Examination.of(
        setup,
        calibration,
        detector=detector,
        fpr=fpr,
        localizer=localizer,
        mitigation=mitigation,
        words=words,
        batch_size=batch_size,
    )
    findings = examination.findings(captions, numbers, progress=progress)
    for reason in texts_unlike(captions, calibration.captions).values():
        logger.warning("%s", reason)
    return _compared(findings, calibration)


def _compared(findings: Iterator[Finding], calibration: Calibration) -> Iterator[Finding]:
    """The findings; after the last one a warning, if the scores differ visibly from those of the references."""
    first: dict[str | int, float] = {}
    for number, finding in enumerate(findings):
        # images of one prompt are not independent; without captions all images are
        first.setdefault(finding.prompt or number, finding.verdict.p_value)
        yield finding
    for reason in scores_unlike(list(first.values()), len(calibration.others)).values():
        logger.warning("%s", reason)


@dataclass(frozen=True)
class Examination:
    """A set-up, and the methods that examine its images.

    Attributes:
        setup: the pipeline and the settings of its calls.
        judge: judges every image.
        localizer: maps flagged images, or None.
        mitigation: makes flagged images again, or None.
        words: whether the words of flagged images are compared.
        batch_size: images per call of the pipeline.
        policy: of a guard; what it would return is found out as well, and replaces what the mitigation alone does. None
            without a guard.
    """

    setup: Setup
    judge: Judge
    localizer: Localizer | None
    mitigation: Mitigation | None
    words: bool
    batch_size: int
    policy: Policy | None = None

    @classmethod
    def of(
        cls,
        setup: Setup,
        calibration: Calibration,
        *,
        detector: str | Any = "auto",
        fpr: float = 0.01,
        localizer: str | Any | None = None,
        mitigation: str | Any | None = None,
        words: bool = False,
        batch_size: int = 8,
        policy: Policy | None = None,
    ) -> "Examination":
        """Find the methods and check that everything fits together; arguments as for `detect`, and of the class.

        Raises:
            UsageError: saying what does not fit.
        """
        judging: Detector = detector_of(detector, setup)
        mapping = None if localizer is None else localizer_of(localizer, setup)
        setup.check([judging] if mapping is None else [judging, mapping])
        if words:
            check_captions(setup)
        if mitigation == "auto":
            remedy = default_mitigation(setup)
            if remedy is None:
                # a model without captions whose scheduler clips, as is usual for DDPM
                logger.warning("no mitigation works in this set-up, so flagged images are not made again")
        else:
            remedy = None if mitigation is None else mitigation_of(mitigation, setup)
        calibration.check(setup)
        if remedy is not None:
            check_fit(remedy, judging, calibration, setup)
        return cls(setup, Judge(calibration, judging, fpr), mapping, remedy, words, batch_size, policy)

    def findings(
        self, prompts: Sequence[str], seeds: Sequence[int], *, progress: Progress | None = None
    ) -> Iterator[Finding]:
        """Generate `prompts[i]` with `seeds[i]` for every i, and examine the images.

        Raises:
            UsageError: at the call, for settings that the pipeline does not take; while it is iterated over, if the
                pipeline was changed so that the calibration does not fit any more.
        """
        batches = generate(
            self.setup,
            prompts,
            seeds,
            batch_size=self.batch_size,
            keep=places([] if self.localizer is None else [self.localizer]) | ({STEP} if self.words else set()),
            norms=self.judge.detector.norms,
            signals=self.judge.detector.signals,
            progress=progress,
        )
        return self._examined(
            checked(
                batches,
                self._check,
                images=len(prompts),
                batch_size=self.batch_size,
            ),
            cut_off(self.setup, prompts),
        )

    def _check(self) -> None:
        """Refuse a pipeline, or a base that the detector compares with, that was changed."""
        self.judge.calibration.check(self.setup)
        self.judge.calibration.check_detector(self.judge.detector)

    def _examined(self, batches: Iterator[Batch], truncated: Collection[str]) -> Iterator[Finding]:
        """The findings for the images of every batch, where some prompts are cut off."""
        for batch in batches:
            verdicts = self.judge(batch.trajectory, list(batch.prompts))
            rows = [row for row, verdict in enumerate(verdicts) if verdict.flagged]
            maps = self._maps(batch, rows)
            words = words_of(self.setup, batch, rows, batch_size=self.batch_size) if self.words else [None] * len(rows)
            compared = dict(zip(rows, words, strict=True))
            guarded = self._returned(batch, verdicts)
            remade = self._remade(batch, verdicts, rows)
            runs = batch.trajectory.bare()
            for row, verdict in enumerate(verdicts):
                again = guarded.get(row) or remade.get(row)
                yield Finding(
                    prompt=batch.prompts[row],
                    seed=batch.seeds[row],
                    verdict=verdict if again is None else again.verdict,
                    image=batch.images[row],
                    trajectory=runs.rows([row]),
                    located=self._located(batch, row, maps.get(row)),
                    instead=_other(again),
                    truncated=batch.prompts[row] in truncated,
                    words=compared.get(row),
                    returned=guarded.get(row),
                )

    def _maps(self, batch: Batch, rows: list[int]) -> dict[int, Map]:
        """The maps of images by their numbers, (1, h, w) each."""
        if not rows or self.localizer is None:
            return {}
        signals = {signal.describe(): signal.name for signal in self.judge.detector.signals}
        if (name := signals.get(self.localizer.describe())) is not None:
            # the score is made from this very map, so it is there already
            found = Map(batch.trajectory.signals[name][rows])
        else:
            found = maps_of(self.setup, [self.localizer], batch, rows)[self.localizer.name]
        return {
            row: Map(found.values[[place]], None if found.errors is None else found.errors[[place]])
            for place, row in enumerate(rows)
        }

    def _located(self, batch: Batch, row: int, found: Map | None) -> Located | None:
        """Image `row` of a batch with its map, None without a map."""
        if found is None or self.localizer is None:
            return None
        name = self.localizer.name
        errors = {} if found.errors is None else {name: found.errors[0]}
        return Located(batch.prompts[row], batch.seeds[row], batch.images[row], {name: found.values[0]}, errors)

    def _remade(self, batch: Batch, verdicts: Sequence[Verdict], rows: list[int]) -> dict[int, Remade]:
        """What the mitigation makes of images, by their numbers; with a guard it is the guard that does it."""
        if not rows or self.mitigation is None or self.policy is not None:
            return {}
        flagged = [Flagged(self._call(batch, row), verdicts[row]) for row in rows]
        with silent(self.setup.pipe):
            return dict(zip(rows, self.mitigation.remake(flagged, self._maker()), strict=True))

    def _returned(self, batch: Batch, verdicts: Sequence[Verdict]) -> dict[int, Returned]:
        """What a guard returns in place of all images of a batch, by their numbers."""
        if self.policy is None:
            return {}
        calls = [self._call(batch, row) for row in range(len(verdicts))]
        with silent(self.setup.pipe):
            found = returned(calls, list(batch.images), verdicts, self.policy, self.mitigation, self._maker())
        return dict(enumerate(found))

    def _maker(self) -> Maker:
        """What makes images again."""
        alters = frozenset() if self.mitigation is None else self.mitigation.alters
        return Maker(self.setup.pipe, self.judge, alters=alters, batch=self.batch_size)

    def _call(self, batch: Batch, row: int) -> Call:
        """The call that makes image `row` of a batch alone."""
        return {
            **self.setup.family.arguments([batch.prompts[row]], self.setup.sampling),
            "generator": torch.Generator().manual_seed(batch.seeds[row]),
            "output_type": "pt",
        }


def _other(again: Remade | Returned | None) -> Tensor | None:
    """The image that was made in place of another one, (3, H, W) in [0, 1]."""
    if isinstance(again, Remade):
        return None if again.output is None else again.output.images[again.place].float().cpu()
    return None if again is None else again.image
