"""The work of `find`, in parts: measure controls and pictures, then look closer where it is close, then judge.

The first answer takes denoising errors alone. Pictures whose p-value is at most `CLOSE` times the rate, and then all
controls, are also restored by the solver, and get a critical scale and a curvature. How near they come back gives a
second p-value. With controls enough for half of the rate, the p-value of a picture is twice the smaller of both
(Bonferroni), which is valid whatever the first has selected; with fewer controls it is the first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.finding.answers import Answer, Found, Verdict
from cryptomnesia.finding.closer import Closer
from cryptomnesia.finding.concluding import Judgement, Look
from cryptomnesia.finding.judging import Compared, Judged, Measured, check_controls
from cryptomnesia.finding.measuring import NOISES, Measure, check_findable
from cryptomnesia.finding.pictures import Picture
from cryptomnesia.finding.restoring import Gallery, Restoring
from cryptomnesia.localizers.settled_detail import local_detail
from cryptomnesia.parts import InParts, Report, Stage
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.statistics import discovery_rate, needed_null
from cryptomnesia.tracing.generation import check_call

CLOSE = 4.0
"""Pictures are looked at more closely up to this many times the rate."""

CONTROLS, PICTURES = "controls", "pictures"
CLOSER_CONTROLS, CLOSER = "controls, closer", "pictures, closer"

WITHOUT = "error/base without"
"""Name of the base model's errors without a caption, which count where the caption does not."""

KIND = "find part"
"""Kind of the files of parts."""


@dataclass(kw_only=True)
class Finding(InParts[Found]):
    """Pictures that are looked for in a model.

    Attributes:
        setup: the pipeline, the settings of its calls, and perhaps a base model to compare with.
        pictures: to look for, each once.
        controls: pictures like them that the model was not trained on; without any, nothing is decided.
        model: its name.
        alpha: the rate at which pictures are judged.
        fdr: the false-discovery rate of all pictures together, None for the rate of each.
        seed: of the noises.
        thumbnails: whether pictures, and what comes back of them, are kept.
        batch_size: pictures per call of the network.
    """

    claimed: ClassVar[str] = "find.json"
    what: ClassVar[str] = "a search"

    setup: Setup
    pictures: Sequence[Picture]
    controls: Sequence[Picture] = ()
    model: str = ""
    alpha: float = 0.05
    fdr: float | None = None
    seed: int = 0
    thumbnails: bool = False
    batch_size: int = 8

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: for a model that cannot be asked about pictures, or controls that are too few.
        """
        check_call(self.setup)
        check_findable(self.setup)
        if self.controls:
            check_controls(len(self.controls), self.alpha)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on, as JSON values: of pictures and captions the digests."""
        checkpoint = self.setup.checkpoint
        return {
            "model": self.model,
            "weights": weights_digest(self.setup.pipe),
            "base": None if checkpoint is None else weights_digest(checkpoint),
            "fingerprint": {name: str(value) for name, value in self.setup.fingerprint.items()},
            "alpha": self.alpha,
            "fdr": self.fdr,
            "seed": self.seed,
            "thumbnails": self.thumbnails,
            "batch_size": self.batch_size,
            "pictures": [picture.identity for picture in self.pictures],
            "controls": [picture.identity for picture in self.controls],
            "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")},
        }

    def stages(self) -> Iterator[list[Stage]]:
        """Yield the first answer, and then the closer look."""
        yield [stage for stage in (self._stage(CONTROLS), self._stage(PICTURES)) if stage.rows]
        if self._close:
            yield [self._stage(CLOSER_CONTROLS), self._stage(CLOSER)]

    def _stage(self, name: str) -> Stage:
        rows: Sequence[int] = range(len(self.controls))
        if name == PICTURES:
            rows = range(len(self.pictures))
        elif name == CLOSER:
            rows = self._close
        return Stage(name, f"{name.replace(', ', '-')}-{{:05d}}.safetensors", self.folder, rows, self.batch_size)

    def part(self, stage: Stage, number: int, report: Report) -> None:
        """Measure some pictures or controls, and write what was measured."""
        of_controls = stage.name in (CONTROLS, CLOSER_CONTROLS)
        rows = list(stage.part(number))
        chosen = [(self.controls if of_controls else self.pictures)[row] for row in rows]
        if stage.name in (CONTROLS, PICTURES):
            others = [self._other(of_controls, row) for row in rows]
            tensors = self._first(chosen, others)
        else:
            tensors = self._closer(chosen, rows, report, of_controls=of_controls)
        save_checked(stage.files[number], KIND, 1, {"rows": rows}, tensors)

    # measuring

    @cached_property
    def _measure(self) -> Measure:
        return Measure(self.setup, self.seed)

    @cached_property
    def _restoring(self) -> Restoring:
        return Restoring(self.setup, self.seed)

    def _fitted(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Pictures at the size that the model makes, (B, H, W, 3) uint8."""
        return np.stack([picture.fitted(*self._measure.size) for picture in pictures])

    def _clean(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures as the network sees them without noise, (B, …)."""
        return self._measure.encoded(self._fitted(pictures))

    @property
    def _captioned(self) -> bool:
        """Whether the model reads captions."""
        return self.setup.family.conditional

    def _other(self, of_controls: bool, row: int) -> str:
        """The caption of another control for the picture, or control, in a row; "" where there is none.

        Pictures and controls get captions of controls alike, of which none is memorized.
        """
        caption = (self.controls if of_controls else self.pictures)[row].caption
        first = (row + of_controls) % max(1, len(self.controls))
        every = [*self.controls[first:], *self.controls[:first], *self.pictures]
        return next((other.caption for other in every if other.caption not in ("", caption)), "")

    def _first(self, pictures: Sequence[Picture], others: Sequence[str]) -> dict[str, Tensor]:
        """The denoising errors of pictures under every condition, NaN without a caption, and their detail."""
        measure, clean = self._measure, self._clean(pictures)
        uncaptioned = measure.uncaptioned(len(pictures))
        tensors = {"detail": local_detail(clean.float(), uncaptioned).float().cpu()}
        tensors["error/none"] = measure.errors(clean, uncaptioned)
        if self._captioned:
            captions = [picture.caption for picture in pictures]
            tensors["error/own"] = self._under(clean, captions)
            tensors["error/other"] = self._under(clean, others)
        if self.setup.checkpoint is not None:
            base = measure.base_denoiser()
            empty = measure.inputs([""] * len(pictures), of=self.setup.checkpoint)
            tensors[WITHOUT] = measure.errors(clean, empty, denoiser=base)
            if self._captioned:
                inputs = measure.inputs([picture.caption for picture in pictures], of=self.setup.checkpoint)
                tensors["error/base"] = measure.errors(clean, inputs, denoiser=base)
        return tensors

    def _under(self, clean: Tensor, captions: Sequence[str]) -> Tensor:
        """The denoising errors of pictures under captions; NaN where there is none."""
        errors = self._measure.errors(clean, self._measure.inputs(captions))
        errors[[not caption for caption in captions]] = torch.nan
        return errors

    def _closer(
        self, pictures: Sequence[Picture], rows: Sequence[int], report: Report, *, of_controls: bool
    ) -> dict[str, Tensor]:
        """What a closer look shows of pictures, or controls, in some rows."""
        fitted, closer = self._fitted(pictures), self._closely
        if of_controls:
            likenesses = [closer.to_control(row) for row in rows]
        else:
            likenesses = [closer.to_picture(one, self._judged[row]) for one, row in zip(fitted, rows, strict=True)]
        captions = {"own": [picture.caption for picture in pictures]}
        if self._captioned:
            captions |= {"none": [""] * len(rows), "other": [self._other(of_controls, row) for row in rows]}
        keep = self.thumbnails and not of_controls
        return closer.look(fitted, captions, likenesses, report, keep=keep)

    @cached_property
    def _closely(self) -> Closer:
        close = [self._judged[row] for row in self._close]
        # no more than some controls are held at the size that the model makes
        firsts = range(0, len(self.controls), self.batch_size)
        controls = [Gallery.of(self._fitted(self.controls[first : first + self.batch_size])) for first in firsts]
        return Closer(self._measure, self._restoring, Gallery.joined(controls), close)

    # judging

    def _read(self, stage: Stage) -> dict[str, Tensor]:
        """What was measured in all parts of a stage."""
        parts = [load_checked(file, KIND, 1)[1] for file in stage.files]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    @cached_property
    def _judged(self) -> list[Judged]:
        """The first answer about every picture."""
        return [judged for judged, _ in self._answered]

    @cached_property
    def _answered(self) -> list[tuple[Judged, dict[str, list[float]]]]:
        """The first answer about every picture, and its curves; of errors no more than a part is held at a time."""
        controls = self._read(self._stage(CONTROLS))
        every = _measured(controls) if self.controls else None
        stage, found = self._stage(PICTURES), []
        for number, file in enumerate(stage.files):
            tensors = load_checked(file, KIND, 1)[1]
            for place, row in enumerate(stage.part(number)):
                own = {name: tensor[place : place + 1] for name, tensor in tensors.items()}
                judged = self._judge(_measured(own), every, row)
                # masks of controls are needed for the closer look alone
                close = judged.p_value <= CLOSE * self.alpha
                found.append((judged if close else replace(judged, masks=judged.masks[:1].copy()), _curves(own)))
        return found

    def _judge(self, own: Measured, every: Measured | None, row: int) -> Judged:
        """The first answer about a picture, from what was measured of it and of all controls."""
        if every is None:
            return Judged(notes=["there are no controls"])
        if not np.isfinite(own.errors["none"]).all():
            return Judged(notes=["the model's output on it is not finite; check the weights and the dtype"])
        # without a caption, or controls with captions, only what needs none is compared
        conditions, notes = ["none"], []
        rows = _finite_rows(every, "none")
        if self._captioned and not self.pictures[row].caption:
            notes.append("it has no caption, so it was looked for without one alone")
        elif self._captioned:
            captioned = _finite_rows(every, "own")
            if len(captioned) >= needed_null(self.alpha):
                rows, conditions = captioned, ["own", "none"]
            else:
                notes.append(
                    f"{len(captioned)} controls have captions, too few for a comparison under its caption at a rate of "
                    f"{self.alpha:g}, so it was looked for without one alone"
                )
        if len(rows) < needed_null(self.alpha):
            return Judged(notes=["the model's output on too many controls is not finite"])
        measured = own + every.rows(rows)
        known = {name: values for name, values in measured.errors.items() if np.isfinite(values).all()}
        without = known.pop(WITHOUT.removeprefix("error/"), None)
        if "own" not in conditions:
            for name in ("own", "other", "base"):
                known.pop(name, None)
            if without is not None:
                known["base"] = without
        if "base" in known:
            conditions.append("base")
        compared = Compared(Measured(known, measured.detail))
        return Judged.of(compared, conditions, self.alpha, rows.tolist(), notes)

    @cached_property
    def _close(self) -> list[int]:
        """The numbers of the pictures that are looked at more closely."""
        return [row for row, judged in enumerate(self._judged) if judged.p_value <= CLOSE * self.alpha]

    def result(self) -> Found:
        """The answers, which are also written to the folder."""
        look = None
        if self._close:
            pictures, controls = (self._read(self._stage(name)) for name in (CLOSER, CLOSER_CONTROLS))
            look = Look(pictures, controls, self._restoring.starts)
        places = {row: place for place, row in enumerate(self._close)}
        judgements = [
            Judgement(judged, look, places.get(row), self.alpha, alike=self._alike(judged))
            for row, judged in enumerate(self._judged)
        ]
        rate = self.alpha
        if self.fdr is not None:
            rate = discovery_rate([one.p_value for one in judgements], self.fdr, fpr=self.alpha)
        curves = {
            name.removeprefix("error/"): np.nanquantile(tensor.mean(dim=(2, 3)).numpy(), [0.05, 0.5, 0.95], axis=0).T
            for name, tensor in self._read(self._stage(CONTROLS)).items()
            if name.startswith("error/") and name != WITHOUT and not tensor.isnan().all()
        }
        found = Found(
            about={name: value for name, value in self.settings.items() if name not in ("pictures", "controls")},
            answers=[self._answer(row, judgement, rate) for row, judgement in enumerate(judgements)],
            ratios=[level.sigma / level.alpha for level in self._measure.levels],
            controls=len(self.controls),
            controls_curve={name: curve.tolist() for name, curve in curves.items()},
            alpha=self.alpha,
            rate=rate,
            smallest=max([one.smallest for one in judgements], default=math.nan),
            thumbnails={row: look.pngs(place) for row, place in places.items() if look is not None and self.thumbnails},
        )
        found.save(self.folder)
        return found

    def _alike(self, judged: Judged) -> bool:
        """Whether the closer look has treated a picture and its controls alike: all of them under captions, or none."""
        return "own" in judged.conditions or not self._captioned

    def _answer(self, row: int, judgement: Judgement, rate: float) -> Answer:
        """What is said of a picture at a rate."""
        picture, judged, errors = self.pictures[row], judgement.judged, self._answered[row][1]
        # a call with both branches is one evaluation
        evaluations = len(self._measure.levels) * NOISES * len(errors) / (2 if self.setup.guided else 1)
        held = judgement.p_value <= rate
        verdict: Verdict = "not evidenced"
        if math.isnan(judgement.p_value):
            verdict = "undecided"
        elif held:
            verdict = "reproducible" if judgement.made else "retained"
        return Answer(
            name=picture.name,
            sha256=picture.digest,
            caption=picture.caption,
            verdict=verdict,
            p_value=judgement.p_value,
            p_values=judgement.p_values,
            statistics=judged.statistics,
            held_by=judged.held_by(rate / judgement.tests) if held else "",
            part=judged.part if held else "",
            part_p=judged.part_p,
            caption_gap=judged.gap,
            caption_gap_p=judged.gap_p,
            share=float(judged.mask.mean()),
            map=judged.map,
            mask=judged.mask,
            curve=errors,
            restorations=judgement.restorations,
            restorations_without=judgement.restored("none"),
            restorations_other=judgement.restored("other"),
            notes=[*judged.notes, *judgement.notes, *picture.notes(*self._measure.size)],
            evaluations=evaluations + judgement.evaluations,
            **judgement.further,
        )


def _measured(tensors: dict[str, Tensor]) -> Measured:
    errors = {name.removeprefix("error/"): value for name, value in tensors.items() if name.startswith("error/")}
    return Measured(
        {name: value.double().numpy() for name, value in errors.items()}, tensors["detail"].double().numpy()
    )


def _curves(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    """Condition → the mean denoising error of a picture at every level, of what is known."""
    return {
        name.removeprefix("error/"): tensor[0].mean(dim=(1, 2)).tolist()
        for name, tensor in tensors.items()
        if name.startswith("error/") and name != WITHOUT and not tensor.isnan().any()
    }


def _finite_rows(measured: Measured, condition: str) -> np.ndarray:
    """The numbers of the pictures whose errors under a condition, and without a caption, are finite."""
    finite = [np.isfinite(measured.errors[name]).all(axis=(1, 2, 3)) for name in {condition, "none"}]
    return np.flatnonzero(np.all(finite, axis=0))
