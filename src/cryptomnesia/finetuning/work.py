"""The work of `finetune`, in parts: what the base makes of the captions, then what every checkpoint makes of them.

Every caption gets a few images, from the same noise at every checkpoint. Where one is a copy, twice as many are made
from other noise, so that a picture counts as copied only if it comes back again and again. For the same pictures the
denoising error is measured with the same noises for base and checkpoint (common random numbers). Held-out pictures, if
there are any, are asked about in the same way; what the checkpoint makes of them is no copy, so an image of a training
picture has to come nearer to it than any of theirs to them.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.detectors.base_difference import BaseDifference
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, save_checked, write_whole
from cryptomnesia.finding.measuring import Measure, check_findable
from cryptomnesia.finding.pictures import Picture
from cryptomnesia.finding.restoring import Gallery
from cryptomnesia.finetuning.asking import Group, Variant, grouped
from cryptomnesia.finetuning.bases import check_same_base
from cryptomnesia.finetuning.checkpoints import Checkpoint
from cryptomnesia.finetuning.comparing import Nearness, Original, gallery_of, originals, small, spread
from cryptomnesia.finetuning.concluding import nearest_of, point_of, remaining
from cryptomnesia.finetuning.course import FILE, Course, Point, Seen
from cryptomnesia.images import heat, pixels, png
from cryptomnesia.localizers.base import Localizer
from cryptomnesia.localizers.curvature import CurvatureDifference
from cryptomnesia.localizers.mapping import mapped
from cryptomnesia.localizers.score_difference import ScoreDifference
from cryptomnesia.parts import InParts, Report, Stage
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.places import exists, read_text
from cryptomnesia.statistics import needed_null
from cryptomnesia.tracing.generation import check_call, generate

BASE = "base model"
"""Name of the first stage, and of the first point."""

MORE = 2
"""How many times as many images are made again under a caption that gave a copy."""

REFERENCES_EACH = 4
"""How many times as many images the base makes of a caption as a checkpoint does: what it comes to by chance."""

SHARED = 32
"""Pictures of one caption, or without any, up to which there are more images the more pictures there are."""

REFERENCES = 500
"""Further training pictures, at most, that images are compared with."""

MAPS: Mapping[Localizer, str] = {
    CurvatureDifference(baseline="checkpoint"): "curvature",
    ScoreDifference(baseline="checkpoint"): "score",
}
"""The maps of copies against the base as the less-trained model (arXiv:2605.26756) → parts of their files' names."""

PROBLEM = "problem"
"""Key of what is written in the place of a part of a checkpoint that could not be measured: why, in words."""

LOWEST = -99.0
"""What is kept of a lower score, -∞ for instance, which JSON does not have."""

KIND = "finetune part"
"""Kind of the files of parts of the base."""


@dataclass(kw_only=True)
class Finetuning(InParts[Course]):
    """A training whose checkpoints are measured.

    Attributes:
        base: the pipeline of the base model, and the settings of its calls.
        model: name of the base model, as checkpoints need it to be loaded.
        loading: further arguments with which checkpoints are loaded.
        checkpoints: by step.
        pictures: of the training.
        held_out: pictures like them that were not trained on.
        further: captions that were not trained on, without pictures.
        duplicates: groups of names of training pictures that are nearly the same.
        notes: what to know about the pictures, in sentences.
        images: number of images under every caption at first.
        most: number of training pictures that are asked about, at most.
        scales: of the LoRA of the last checkpoint, besides 1.
        alpha: rate at which pictures are held and captions are flagged.
        seed: of the first image of every caption, and of the noises.
        thumbnails: whether copies are kept.
        batch_size: images per call of the network.
    """

    claimed: ClassVar[str] = "settings.json"
    what: ClassVar[str] = "a finetune run"

    base: Setup
    model: str
    checkpoints: Sequence[Checkpoint]
    pictures: Sequence[Picture]
    held_out: Sequence[Picture] = ()
    further: Sequence[str] = ()
    duplicates: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    loading: Mapping[str, Any] = field(default_factory=dict)
    images: int = 2
    most: int = 100
    scales: Sequence[float] = ()
    alpha: float = 0.05
    seed: int = 0
    thumbnails: bool = True
    batch_size: int = 8

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: for a model that cannot be asked about pictures, or captions that are missing.
        """
        check_call(self.base)
        check_findable(self.base)
        if not self._captioned and not self.held_out:
            raise UsageError(
                "the model reads no captions, so each of its images may come near to any picture by chance; give "
                "pictures that the training does not see (--held-out)"
            )
        if self._captioned:
            for pictures, what in ((self.pictures, "training pictures"), (self.held_out, "held-out pictures")):
                if pictures and not any(picture.caption for picture in pictures):
                    raise UsageError(
                        f"none of the {what} has a caption, and the model reads captions; put a text file of the same "
                        "name beside every picture, or a metadata.jsonl or .csv with file_name and text in the folder"
                    )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the measurements depend on, as JSON values: of pictures and captions the digests.

        Checkpoints and scales are not among them: a run goes on with more of them.
        """
        return {
            "base": self.model,
            "weights": weights_digest(self.base.pipe),
            "fingerprint": {name: str(value) for name, value in self.base.fingerprint.items()},
            "images": self.images,
            "most": self.most,
            "alpha": self.alpha,
            "seed": self.seed,
            "thumbnails": self.thumbnails,
            "batch_size": self.batch_size,
            "pictures": [picture.identity for picture in self.pictures],
            "held_out": [picture.identity for picture in self.held_out],
            "further": sha256("\n".join(self.further).encode()).hexdigest(),
            "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")},
        }

    def stages(self) -> Iterator[list[Stage]]:
        """Yield the base model, and then the checkpoints."""
        yield [self._stage(None)]
        yield [self._stage(variant) for variant in self._variants]

    def part(self, stage: Stage, number: int, report: Report) -> None:
        """Measure some captions, and write what was measured."""
        groups = [self._groups[row] for row in stage.part(number)]
        if stage.name == BASE:
            self._part_of_base(stage.files[number], groups, report)
        else:
            variant = next(one for one in self._variants if one.name == stage.name)
            try:
                found = self._part_of(variant, groups, report)
            # one checkpoint that cannot be loaded does not stop the others
            except UsageError as error:
                found = {PROBLEM: str(error)}
            write_whole(stage.files[number], json.dumps(found) + "\n")

    def result(self) -> Course:
        """The course of the training, which is also written to the folder."""
        problems = {variant: why for variant in self._variants if (why := self._problem(variant))}
        measured = [variant for variant in self._variants if variant not in problems]
        if problems and not measured:
            raise UsageError(f"no checkpoint could be measured: {next(iter(problems.values()))}")
        notes = [f"{variant.name} was not measured: {why}" for variant, why in problems.items()]
        points = [self._point(variant) for variant in measured if variant.scale == 1]
        scales = [self._point(variant) for variant in measured if variant.scale != 1]
        if scales:
            scales += [point for point in points if point.name == scales[0].name]
            scales.sort(key=lambda point: point.scale)
        elif self.scales and measured:
            notes.append(f"{measured[-1].name} is no LoRA, so it has no scale")
        earlier = Course.load(self.folder) if exists(self.folder / FILE) else None
        if earlier is not None:
            kept, dropped = remaining(earlier.points[1:], points)
            points = sorted([*points, *kept], key=lambda point: point.step)
            scales = scales or [point for point in earlier.scales if point.digest in {one.digest for one in points}]
            if kept:
                names = ", ".join(point.name for point in kept)
                notes.append(f"not in the folder any more, as measured before: {names}")
            if dropped:
                notes.append("the folder of this run held another training, whose checkpoints are left out")
        names = [self.pictures[row].name for row in self._asked]
        found = Course(
            about={key: value for key, value in self.settings.items() if key not in ("pictures", "held_out")},
            pictures=names,
            digests=[self.pictures[row].digest for row in self._asked],
            points=[self._base_point, *points],
            scales=scales,
            alpha=self.alpha,
            duplicates=self.duplicates,
            notes=[*self._notes, *notes],
        )
        found.save(self.folder)
        return found

    # what is asked

    @property
    def _captioned(self) -> bool:
        """Whether the model reads captions."""
        return self.base.family.conditional

    @cached_property
    def _asked(self) -> list[int]:
        """The numbers of the training pictures that are asked about: those with duplicates first, the others drawn."""
        rows = [row for row, picture in enumerate(self.pictures) if picture.caption or not self._captioned]
        order = np.random.default_rng(self.seed).permutation(len(rows)).tolist()
        repeated = {name for names in self.duplicates for name in names}
        order.sort(key=lambda place: self.pictures[rows[place]].name not in repeated)
        return sorted(rows[place] for place in order[: self.most])

    @cached_property
    def _controls(self) -> list[Picture]:
        """The held-out pictures that are asked about."""
        kept = [picture for picture in self.held_out if picture.caption or not self._captioned]
        order = np.random.default_rng(self.seed).permutation(len(kept)).tolist()
        return [kept[place] for place in sorted(order[: self.most])]

    @cached_property
    def _groups(self) -> list[Group]:
        """The captions, first those of the training."""
        trained = grouped([self._caption(self.pictures[row]) for row in self._asked], trained=True)
        others = grouped([self._caption(picture) for picture in self._controls], trained=False)
        known = {group.caption for group in (*trained, *others)}
        if not self._captioned:
            # the images of a model without captions are the same for all pictures
            return trained + others
        return [*trained, *others, *(Group(caption, (), False) for caption in self.further if caption not in known)]

    @cached_property
    def _trained_captions(self) -> set[str]:
        return {group.caption for group in self._groups if group.trained}

    def _caption(self, picture: Picture) -> str:
        return picture.caption if self._captioned else ""

    @cached_property
    def _variants(self) -> list[Variant]:
        """What is measured, by step, and then by scale."""
        found = [Variant(checkpoint) for checkpoint in self.checkpoints]
        if found and found[-1].checkpoint.scalable:
            found += [replace(found[-1], scale=scale) for scale in self.scales if scale != 1]
        return found

    def _stage(self, variant: Variant | None) -> Stage:
        pattern = "base-{:05d}.safetensors" if variant is None else f"point-{variant.key}-{{:05d}}.json"
        name = BASE if variant is None else variant.name
        return Stage(name, pattern, self.folder, range(len(self._groups)), self.batch_size)

    # measuring

    def _images(self, group: Group) -> int:
        """The number of images that are made at first under the caption of a group."""
        return self.images * min(max(1, len(group.rows)), SHARED)

    def _part_of_base(self, file: Path, groups: Sequence[Group], report: Report) -> None:
        """Write the images that the base makes, the captions' numbers of images, and the denoising errors."""
        made, _ = self._made(self.base, groups, range(len(groups)), report=report, times=REFERENCES_EACH)
        tensors = {"images": torch.from_numpy(np.concatenate([small(images) for images in made]))}
        rows = [self._picture(group, row) for group in groups for row in group.rows]
        if rows:
            tensors["errors"] = self._errors(self.base, rows)
        save_checked(file, KIND, 1, {"images": [len(images) for images in made]}, tensors)

    def _picture(self, group: Group, row: int) -> Picture:
        """A picture of a group."""
        return self.pictures[self._asked[row]] if group.trained else self._controls[row]

    def _errors(self, setup: Setup, pictures: Sequence[Picture]) -> Tensor:
        """The denoising errors of pictures under their captions, (n, levels)."""
        measure, found = Measure(setup, self.seed), []
        for start in range(0, len(pictures), self.batch_size):
            batch = pictures[start : start + self.batch_size]
            clean = measure.encoded(np.stack([picture.fitted(*measure.size) for picture in batch]))
            captions = [picture.caption for picture in batch]
            inputs = measure.inputs(captions) if self._captioned else measure.uncaptioned(len(batch))
            found.append(measure.errors(clean, inputs).mean(dim=(2, 3)))
        return torch.cat(found)

    def _made(
        self,
        setup: Setup,
        groups: Sequence[Group],
        which: Sequence[int],
        *,
        times: int = 1,
        after: int = 0,
        report: Report | None = None,
    ) -> tuple[list[np.ndarray], list[list[float]]]:
        """Images under the captions of some groups, each (n, H, W, 3) uint8, and the detector's scores of them.

        Args:
            setup: of the model.
            groups: captions.
            which: numbers of the groups.
            times: how many times as many images as at first.
            after: how many times as many images were made before.
            report: called with the number of groups that are done.
        """
        counts = [self._images(groups[number]) * times for number in which]
        first = [self._images(groups[number]) * after for number in which]
        captions = [groups[number].caption for number, count in zip(which, counts, strict=True) for _ in range(count)]
        seeds = [self.seed + start + one for start, count in zip(first, counts, strict=True) for one in range(count)]
        detector = None if after or setup is self.base else self._detector(setup)
        images: list[np.ndarray] = []
        scores: list[float] = []
        for batch in generate(
            setup,
            captions,
            seeds,
            batch_size=self.batch_size,
            keep=() if detector is None else detector.places,
            signals=() if detector is None else detector.signals,
            progress=None if report is None else lambda done: report(len(groups) * done / len(captions)),
        ):
            images += [pixels(image) for image in batch.images]
            if detector is not None:
                scores += batch.trajectory.signals[detector.name].double().tolist()
        ends = np.cumsum(counts).tolist()
        spans = [(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return [np.stack(images[start:end]) for start, end in spans], [scores[start:end] for start, end in spans]

    def _detector(self, setup: Setup) -> BaseDifference | None:
        """The detector, where it works and there are held-out captions enough."""
        if sum(not group.trained for group in self._groups) < needed_null(self.alpha):
            return None
        detector = BaseDifference(self.base.pipe)
        # not with models whose text encoder was trained as well
        return detector if setup.accepts(detector) else None

    def _part_of(self, variant: Variant, groups: Sequence[Group], report: Report) -> dict[str, Any]:
        """What a checkpoint makes of some captions, as JSON values."""
        setup = self._setup(variant)
        made, scores = self._made(setup, groups, range(len(groups)), report=report)
        spreads = [spread(images) for images in made]
        found = [self._nearness(group, images) for group, images in zip(groups, made, strict=True)]
        suspected = [
            number
            for number, nearness in enumerate(found)
            if groups[number].trained and any((one.scores > 0).any() for one in nearness)
        ]
        if suspected:
            again, _ = self._made(setup, groups, suspected, times=MORE, after=1)
            for number, images in zip(suspected, again, strict=True):
                made[number] = np.concatenate([made[number], images])
                found[number] = self._nearness(groups[number], made[number])
        pictures = [self._picture(group, row) for group in groups for row in group.rows]
        measured = self._errors(setup, pictures) if pictures else torch.zeros(0)
        if not measured.isfinite().all():
            raise UsageError("the model's output is not finite; the training has diverged, or needs another dtype")
        errors = iter(measured.tolist())
        values = []
        for group, images, nearness, one, score in zip(groups, made, found, spreads, scores, strict=True):
            values.append(
                {
                    "pictures": [
                        self._values(variant, group, row, images, near, next(errors))
                        for row, near in zip(group.rows, nearness, strict=True)
                    ],
                    "elsewhere": self._nearest_of_any(images) if group.caption not in self._trained_captions else [],
                    "spread": one,
                    "score": float(np.mean(score)) if score else None,
                }
            )
        kept = [
            (group.caption, picture)
            for group, value in zip(groups, values, strict=True)
            for picture in value["pictures"]
            if picture["file"]
        ]
        self._map(variant, kept)
        return {"groups": values}

    def _nearness(self, group: Group, images: np.ndarray) -> list[Nearness]:
        """How near images are to every picture of a group."""
        gallery = Gallery.of(images)
        every = self._originals if group.trained else self._control_originals
        return [every[row].nearness(gallery) for row in group.rows]

    def _nearest_of_any(self, images: np.ndarray) -> list[float]:
        """The score of every image as a whole, for the training picture that it is nearest to."""
        gallery = Gallery.of(images)
        found = np.max([original.nearness(gallery).scores[:, 0] for original in self._originals], axis=0)
        return found.round(4).tolist()

    def _values(
        self, variant: Variant, group: Group, row: int, images: np.ndarray, near: Nearness, errors: Sequence[float]
    ) -> dict[str, Any]:
        """What is kept of a picture, as JSON values."""
        base = (self._base_errors if group.trained else self._control_errors)[row]
        nearest = nearest_of(near.scores)
        values: dict[str, Any] = {
            "row": row,
            "trained": group.trained,
            "scores": np.maximum(near.scores, LOWEST).round(4).tolist(),
            "by": near.by,
            "quarters": near.quarters,
            "learnt": float(np.log(base / np.maximum(errors, 1e-12)).mean()),
            "seed": self.seed + nearest,
            "file": "",
            "maps": {},
        }
        if group.trained and self.thumbnails and (near.scores[nearest] > 0).any():
            values["file"] = f"copy-{variant.key}-{row:04d}.png"
            values["maps"] = {what: _beside(values["file"], what) for what in self._localizers(variant).values()}
            picture = self._picture(group, row).fitted(*images.shape[1:3])
            write_whole(self.folder / values["file"], png(images[nearest]))
            write_whole(self.folder / _beside(values["file"], "training"), png(picture))
        return values

    def _map(self, variant: Variant, kept: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Write the maps of the nearest images of pictures: captions and what is kept of the pictures."""
        localizers = self._localizers(variant)
        if not kept or not localizers:
            return
        captions, seeds = [caption for caption, _ in kept], [values["seed"] for _, values in kept]
        batches = mapped(self._setup(variant), captions, seeds, [*localizers], batch_size=self.batch_size, decode=False)
        rows = ((maps, row) for batch, maps in batches for row in range(len(batch.seeds)))
        for (_, values), (maps, row) in zip(kept, rows, strict=True):
            for localizer, what in localizers.items():
                write_whole(self.folder / values["maps"][what], heat(maps[localizer.name].values[row].numpy()))

    def _localizers(self, variant: Variant) -> dict[Localizer, str]:
        """The maps that work for a checkpoint → parts of the names of their files."""
        setup = self._setup(variant)
        return {localizer: what for localizer, what in MAPS.items() if setup.accepts(localizer)}

    def _setup(self, variant: Variant) -> Setup:
        """The set-up of a checkpoint; the last one is kept."""
        if self._loaded is None or self._loaded[0] != variant.key:
            self._loaded = None
            pipe = variant.checkpoint.load(self.model, scale=variant.scale, **self.loading)
            check_same_base(self.base.pipe, pipe)
            self._loaded = variant.key, replace(self.base, pipe=pipe, checkpoint=self.base.pipe)
        return self._loaded[1]

    _loaded: tuple[str, Setup] | None = field(default=None, init=False, repr=False)

    # what the base makes

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return Measure(self.base).size

    @cached_property
    def _base_parts(self) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
        return [load_checked(file, KIND, 1) for file in self._stage(None).files]

    @cached_property
    def _base_images(self) -> list[np.ndarray]:
        """The images of the base model for every group, each (n, SIDE, SIDE, 3) uint8."""
        found: list[np.ndarray] = []
        for about, tensors in self._base_parts:
            found += np.split(tensors["images"].numpy(), np.cumsum(about["images"])[:-1])
        return found

    @cached_property
    def _every_error(self) -> dict[tuple[bool, int], np.ndarray]:
        """(trained, number of the picture) → the base's denoising errors, (levels,)."""
        errors = torch.cat([tensors["errors"] for _, tensors in self._base_parts if "errors" in tensors]).numpy()
        rows = [(group.trained, row) for group in self._groups for row in group.rows]
        return dict(zip(rows, errors, strict=True))

    @cached_property
    def _base_errors(self) -> dict[int, np.ndarray]:
        return {row: errors for (trained, row), errors in self._every_error.items() if trained}

    @cached_property
    def _control_errors(self) -> dict[int, np.ndarray]:
        return {row: errors for (trained, row), errors in self._every_error.items() if not trained}

    @cached_property
    def _base_gallery(self) -> Gallery:
        return Gallery.of(np.concatenate(self._base_images))

    @cached_property
    def _made_under(self) -> list[str]:
        """The captions of the base's images."""
        return [group.caption for group, images in zip(self._groups, self._base_images, strict=True) for _ in images]

    @cached_property
    def _originals(self) -> list[Original]:
        """The training pictures that are asked about."""
        asked = [self.pictures[row] for row in self._asked]
        rest = [picture for row, picture in enumerate(self.pictures) if row not in set(self._asked)][:REFERENCES]
        captions = [self._caption(picture) for picture in asked]
        shown = gallery_of(asked, self._size)
        others = gallery_of(rest, self._size) if rest else shown.rows([])
        return originals(shown, captions, others, self._base_gallery, self._made_under)

    @cached_property
    def _control_originals(self) -> list[Original]:
        """The held-out pictures, compared as those of the training are."""
        if not self._controls:
            return []
        captions = [self._caption(picture) for picture in self._controls]
        asked = gallery_of([self.pictures[row] for row in self._asked], self._size)
        return originals(gallery_of(self._controls, self._size), captions, asked, self._base_gallery, self._made_under)

    # the result

    def _kept(self, variant: Variant) -> list[dict[str, Any]]:
        """What is kept of all parts of a checkpoint."""
        return [json.loads(read_text(file)) for file in self._stage(variant).files]

    def _problem(self, variant: Variant) -> str:
        """Why a checkpoint could not be measured, "" if it was."""
        return next((part[PROBLEM] for part in self._kept(variant) if PROBLEM in part), "")

    def _point(self, variant: Variant) -> Point:
        """What was measured of a checkpoint."""
        found = [group for part in self._kept(variant) for group in part["groups"]]
        return point_of(variant, self._groups, found, self._base_spreads, alpha=self.alpha, seed=self.seed)

    @cached_property
    def _base_spreads(self) -> list[float | None]:
        return [spread(images) for images in self._base_images]

    @cached_property
    def _base_point(self) -> Point:
        """The base model, which copies nothing: what it makes is what comes near to a picture by chance."""
        images = dict.fromkeys(range(len(self._asked)), 0)
        for group, made in zip(self._groups, self._base_images, strict=True):
            images |= dict.fromkeys(group.rows, len(made)) if group.trained else {}
        whole = (0.0, 0.0, 1.0, 1.0)
        seen = [Seen(count, 0, False, math.nan, "pixels", whole, 0.0) for count in images.values()]
        return Point(BASE, 0, 1.0, "", seen, diversity=1.0)

    @property
    def _notes(self) -> list[str]:
        notes = [*self.notes]
        uncaptioned = sum(not picture.caption for picture in self.pictures) if self._captioned else 0
        if uncaptioned:
            notes.append(f"{uncaptioned} training pictures have no caption and were not asked about")
        if len(self._asked) < len(self.pictures) - uncaptioned:
            notes.append(f"{len(self._asked)} of {len(self.pictures)} training pictures were asked about")
        if 0 < len(self._controls) < needed_null(self.alpha):
            notes.append(
                f"{len(self._controls)} held-out pictures are too few to say which pictures are held at a rate of "
                f"{self.alpha:g}; give at least {needed_null(self.alpha)}"
            )
        if not self._controls:
            notes.append(
                "without held-out pictures it is not known how near images come to pictures that were not trained on"
            )
        return notes


def _beside(file: str, what: str) -> str:
    """The name of the file of something that belongs to an image."""
    return f"{file.removesuffix('.png')}.{what}.png"
