"""One unit of an audit's work: prompts and seeds in, one row of evidence per image out.

It knows of the run directory only how to keep a picture, so it can run anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.auditing.rows import RETURNED, verdict_columns
from cryptomnesia.calibration.masks import Mask, ReferenceMaps
from cryptomnesia.detection import Examination, Finding
from cryptomnesia.errors import UsageError
from cryptomnesia.images import png
from cryptomnesia.matching import ImageIndex, Matches
from cryptomnesia.matching.sources import as_text
from cryptomnesia.tracing.columns import columns
from cryptomnesia.tracing.generation import Progress

Keep = Callable[[bytes, str], str]
"""Keeps a file's content under a suffix, and returns the path by which it is found."""

NO_MATCH: dict[str, Any] = dict.fromkeys(
    f"{place}_{what}" for place in ("whole", "region") for what in ("path", "distance", "relative", "p")
) | {"matched_whole": False, "matched_region": False}
"""The columns of an image that was compared with no training image."""


@dataclass(frozen=True)
class Examiner:
    """A model with everything that judges its images.

    Attributes:
        examination: generates, judges, maps and makes again.
        reference: turns maps into masks; None if there are no maps.
        pixel_fpr: share of the pixels of ordinary pictures above a mask's threshold.
        index: of training images, None if there are none.
    """

    examination: Examination
    reference: ReferenceMaps | None
    pixel_fpr: float
    index: ImageIndex | None

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], keep: Keep, *, progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """Rows of evidence on the images of `prompts` and `seeds`, at most as many as the examination's batch size.

        They hold the norms and signals that were recorded, so that scores can be computed again.
        """
        findings = list(self.examination.findings(prompts, seeds, progress=progress))
        maps = [self._map(finding) for finding in findings]
        masks = [None if heat is None else self._mask(heat) for heat in maps]
        places = [
            None if heat is None or mask is None else core(heat, mask.pixels)
            for heat, mask in zip(maps, masks, strict=True)
        ]
        matches = self._matches(torch.stack([finding.image for finding in findings]), places)
        returned = self._returned(findings, places, matches)
        return [
            {
                "prompt": finding.prompt,
                "seed": finding.seed,
                "truncated": finding.truncated,
                **verdict_columns(finding.verdict),
                **columns(finding.trajectory),
                "image": keep(png(finding.image), ".png"),
                "instead": None if finding.instead is None else keep(png(finding.instead), ".png"),
                "words": None if finding.words is None else [asdict(word) for word in finding.words],
                "map_missing": _why_missing(finding, heat),
                **_map_columns(heat, mask),
                **match,
                **behind,
            }
            for finding, heat, mask, match, behind in zip(findings, maps, masks, matches, returned, strict=True)
        ]

    def _returned(
        self, findings: Sequence[Finding], masks: Sequence[Tensor | None], matches: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The columns on what a guard returned in place of every image; none without a guard.

        What was made again is compared inside the core of the first image's mask, where the memory is most likely to
        be. A part of a memory that has moved is found only if the whole picture matches.
        """
        found = [finding.returned for finding in findings]
        remade = [row for row, one in enumerate(found) if one is not None and one.image is not None]
        again: dict[int, dict[str, Any]] = {}
        if remade:
            images = torch.stack([image for row in remade if (image := findings[row].instead) is not None])
            again = dict(zip(remade, self._matches(images, [masks[row] for row in remade]), strict=True))
        columns: list[dict[str, Any]] = []
        for row, one in enumerate(found):
            if one is None:
                columns.append({})
                continue
            withheld = one.image is None and one.verdict.action == "withheld"
            match = again.get(row, NO_MATCH if withheld else matches[row])
            columns.append(
                {
                    "returned_p": one.p_value,
                    "step": one.step,
                    "guard_evaluations": float(one.evaluations),
                    **{f"{RETURNED}{name}": value for name, value in match.items()},
                }
            )
        return columns

    def _map(self, finding: Finding) -> Tensor | None:
        """The map (h, w) of a flagged image, None if there is none or it is not finite."""
        if finding.located is None or self.examination.localizer is None:
            return None
        heat = finding.located.maps[self.examination.localizer.name]
        return heat if heat.isfinite().all() else None

    def _mask(self, heat: Tensor) -> Mask | None:
        return None if self.reference is None else self.reference.mask(heat[None], fpr=self.pixel_fpr).image(0)

    def _matches(self, images: Tensor, masks: Sequence[Tensor | None]) -> list[dict[str, Any]]:
        """The training images nearest to B images (B, 3, H, W); inside its core for an image that matches none."""
        if self.index is None:
            return [NO_MATCH for _ in masks]
        fpr = self.examination.judge.fpr
        whole = self.index.match(images, fpr=fpr)
        rows = [NO_MATCH | _match("whole", whole, row) for row in range(len(masks))]
        open_masks = {
            row: mask
            for row, mask in enumerate(masks)
            if mask is not None and mask.any() and not whole.reproduced[row] and _has_places(self.index)
        }
        if open_masks:
            inside = self.index.match(images[list(open_masks)], masks=torch.stack(list(open_masks.values())), fpr=fpr)
            for number, row in enumerate(open_masks):
                rows[row] |= _match("region", inside, number)
        return rows


def core(heat: Tensor, mask: Tensor) -> Tensor:
    """The half of a mask (h, w) bool in which its map (h, w) is highest, (h, w) bool.

    Training images are compared inside of it. A mask may spill over the edge of what is memorized, and a few pixels of
    a surrounding that is different every time make a copy unlike its training image.
    """
    return mask & (heat >= heat[mask].median()) if mask.any() else mask


def _has_places(index: ImageIndex) -> bool:
    """Whether pictures can be compared inside a mask: an embedding is of the whole picture."""
    side = index.descriptor.side
    try:
        index.descriptor.weights(torch.ones(1, side, side))
    except UsageError:
        return False
    return True


def _why_missing(finding: Finding, heat: Tensor | None) -> str | None:
    """Why a flagged image has no map although there should be one, None if nothing is missing."""
    if finding.located is None or heat is not None:
        return None
    return "could not tell: the network's output is not finite where the map asks for it; check the model's dtype"


def _map_columns(heat: Tensor | None, mask: Mask | None) -> dict[str, Any]:
    """What the map of a flagged image says."""
    if heat is None or mask is None:
        return dict.fromkeys(("map", "mask", "fraction", "fraction_p", "mean_p"))
    return {
        "map": heat.tolist(),
        "mask": mask.pixels.tolist(),
        "fraction": mask.fraction.item(),
        "fraction_p": mask.p_value.item(),
        "mean_p": mask.mean_p_value.item(),
    }


def _match(place: str, found: Matches, number: int) -> dict[str, Any]:
    """The training image that was found, if there was anything to compare."""
    if found.distances[number].isinf():
        return {}
    return {
        f"{place}_path": as_text(found.paths[number]),
        f"{place}_distance": found.distances[number].item(),
        f"{place}_relative": found.relative[number].item(),
        f"{place}_p": found.p_values[number].item(),
        f"matched_{place}": found.reproduced[number].item(),
    }
