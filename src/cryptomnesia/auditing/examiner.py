"""One unit of an audit's work: some prompts and seeds in, one row of evidence per image out.

It knows nothing of the run directory but how to keep a picture, so it can run anywhere.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.auditing.outcome import MEAN
from cryptomnesia.calibration.maps import MapCalibration
from cryptomnesia.calibration.masks import Mask
from cryptomnesia.calibration.scores import Calibration
from cryptomnesia.detection import Finding, examine
from cryptomnesia.detectors import SIGNALS
from cryptomnesia.localizers.methods import Method
from cryptomnesia.matching import ImageIndex, Matches, Tiles
from cryptomnesia.matching.building import as_text
from cryptomnesia.mitigations import default_rule
from cryptomnesia.report.panel import pixels
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import Progress
from cryptomnesia.tracing.trajectory import Norms, Trajectory

Keep = Callable[[bytes, str], str]
"""Keeps a file's content under a suffix, and gives the name that it is found by."""


@dataclass(frozen=True)
class Examiner:
    """A model with everything that judges it.

    Attributes:
        pipe: the pipeline.
        sampling: the settings of every image.
        calibration: of scores.
        maps: of the map.
        method: the map that flagged images get.
        detector: whose score flags.
        rate: false-positive rate at which it does.
        pixel_rate: share of ordinary pixels in a mask.
        mitigate: whether flagged images are made again.
        index: of training images, None if there are none.
    """

    pipe: Any
    sampling: Sampling
    calibration: Calibration
    maps: MapCalibration
    method: Method
    detector: str
    rate: float
    pixel_rate: float
    mitigate: bool
    index: ImageIndex | None

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], keep: Keep, *, progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """Rows of evidence on the images of `prompts` and `seeds`, all made in one call of the pipeline.

        Norms are kept as they were seen, so that scores can be made anew.
        """
        found = list(
            examine(
                self.pipe,
                prompts,
                seeds,
                self.sampling,
                self.calibration,
                detector=self.detector,
                rate=self.rate,
                localizer=self.method.localizer,
                rule=default_rule(conditional=True) if self.mitigate else None,
                batch_size=len(prompts),
                progress=progress,
            )
        )
        images = torch.stack([each.image for each in found])
        reference = self.maps.references[self.method.name]
        masks = [None if each.map is None else reference.mask(each.map[None], rate=self.pixel_rate) for each in found]
        matches = self._matches(images, [None if mask is None else mask.pixels[0] for mask in masks])
        return [
            {
                "prompt": each.prompt,
                "seed": each.seed,
                "flagged": each.flagged,
                **columns(each.norms, each.signals),
                "image": keep(png(each.image), ".png"),
                **_map(each.map, mask),
                **match,
                **_remedy(each, keep),
            }
            for each, mask, match in zip(found, masks, matches, strict=True)
        ]

    def _matches(self, images: Tensor, masks: Sequence[Tensor | None]) -> list[dict[str, Any]]:
        """The training images nearest to each of B images; inside its mask where the whole one is none of them."""
        if self.index is None:
            return [NO_MATCH for _ in masks]
        whole = self.index.match(images, rate=self.rate)
        rows = [NO_MATCH | _match("whole", whole, row) for row in range(len(masks))]
        # only tiles belong to a place; an embedding is of the whole picture
        local = isinstance(self.index.descriptor, Tiles)
        left = {
            row: mask
            for row, mask in enumerate(masks)
            if local and mask is not None and mask.any() and not whole.reproduced[row]
        }
        if left:
            inside = self.index.match(images[list(left)], masks=torch.stack(list(left.values())), rate=self.rate)
            for number, row in enumerate(left):
                rows[row] |= _match("region", inside, number)
        return rows


def _map(found: Tensor | None, mask: Mask | None) -> dict[str, Any]:
    """What the map of a flagged image says."""
    if found is None or mask is None:
        return dict.fromkeys(("map", "mask", "fraction", "fraction_p", "mean_p"))
    return {
        "map": found.tolist(),
        "mask": mask.pixels[0].tolist(),
        "fraction": mask.fraction.item(),
        "fraction_p": mask.p_value.item(),
        "mean_p": mask.mean_p_value.item(),
    }


def _remedy(found: Finding, keep: Keep) -> dict[str, Any]:
    """What the mitigation did about a flagged image."""
    if found.remedy is None:
        return dict.fromkeys(("action", "dropped", "reason", "instead"))
    return {
        "action": found.remedy.action,
        "dropped": list(found.remedy.dropped),
        "reason": found.remedy.reason,
        "instead": None if found.instead is None else keep(png(found.instead), ".png"),
    }


def png(image: Tensor) -> bytes:
    """An image (3, H, W) in [0, 1] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels(image)).save(file, format="PNG")
    return file.getvalue()


def columns(norms: Norms, signals: Mapping[str, Tensor]) -> dict[str, Any]:
    """The norms (1, N) and signals (1,) of one image as columns of a row."""
    seen = {norm.name: getattr(norms, norm.name)[0].tolist() for norm in fields(Norms)}
    return seen | {f"{name}{MEAN}": value.item() for name, value in signals.items()}


def trajectory_of(rows: Sequence[dict[str, Any]]) -> Trajectory:
    """What rows of evidence say was seen of their images, without tensors."""
    norms = Norms(*(torch.tensor([row[norm.name] for row in rows]) for norm in fields(Norms)))
    evaluations = norms.z.shape[1]
    signals = {
        name: torch.tensor([row[f"{name}{MEAN}"] for row in rows]) for name in SIGNALS if f"{name}{MEAN}" in rows[0]
    }
    timesteps = tuple(map(float, range(evaluations)))
    return Trajectory(timesteps, norms, {}, torch.empty(len(rows), 0), complete=True, signals=signals)


NO_MATCH: dict[str, Any] = dict.fromkeys(
    f"{place}_{what}" for place in ("whole", "region") for what in ("path", "distance", "relative", "p")
) | {"matched_whole": False, "matched_region": False}


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
