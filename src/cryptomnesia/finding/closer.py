"""The closer look: what comes back of pictures from noise, how near it is to them, critical scale and curvature.

Pictures and controls are looked at in the same way. What comes back is compared with the picture as a whole and within
a mask. A picture has one mask. A control has one beside every picture that is looked at, because a mask depends on
what the control is compared with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.detectors.critical_scale import CriticalScale
from cryptomnesia.finding.judging import Judged
from cryptomnesia.finding.measuring import Measure, levels_of
from cryptomnesia.finding.restoring import SEEDS, Gallery, Likeness, Restoring
from cryptomnesia.images import pixels
from cryptomnesia.localizers.base import Watched
from cryptomnesia.localizers.baseline import Baseline
from cryptomnesia.localizers.curvature import CurvatureDifference
from cryptomnesia.parts import Report
from cryptomnesia.tracing.trajectory import Step, Trajectory

SCALE = CriticalScale()

LEAST_SCALE = 0.02
"""σ/α of the lowest level among which the critical scale is searched."""


@dataclass(frozen=True)
class Closer:
    """Looks at pictures, and at all controls.

    Attributes:
        measure: measures of the model.
        restoring: restores pictures.
        controls: the gallery of all controls.
        judged: the first answers about the pictures that are looked at.
    """

    measure: Measure
    restoring: Restoring
    controls: Gallery
    judged: Sequence[Judged]

    def to_picture(self, fitted: np.ndarray, judged: Judged) -> list[Likeness]:
        """How near something is to a picture (H, W, 3) uint8: as a whole, and within its mask."""
        picture = Gallery.of(fitted[None])
        return [Likeness(picture, self.controls, mask) for mask in (None, judged.mask)]

    def to_control(self, number: int) -> list[Likeness]:
        """How near something is to a control: as a whole, and within its masks beside every picture."""
        control = self.controls.rows([number])
        others = self.controls.rows([row for row in range(len(self.controls.tiles)) if row != number])
        # the picture is the first of those that are compared
        masks = [one.masks[1 + list(one.rows).index(number)] if number in one.rows else None for one in self.judged]
        return [Likeness(control, others, mask) for mask in (None, *masks)]

    def look(
        self,
        fitted: np.ndarray,
        captions: Sequence[str],
        likenesses: Sequence[Sequence[Likeness]],
        report: Report,
        *,
        keep: bool,
    ) -> dict[str, Tensor]:
        """Restorations, critical scale and curvature of pictures.

        Args:
            fitted: pictures at the size that the model makes, (B, H, W, 3) uint8.
            captions: one per picture.
            likenesses: per picture, what is compared with it.
            report: called with the number of pictures that are done.
            keep: whether what comes back is kept.
        """
        tensors: dict[str, Tensor] = {}
        starts = self.restoring.starts
        kept: list[np.ndarray] = []
        for place, start in enumerate(starts):
            near = []
            for number in range(SEEDS if math.isinf(start.ratio) else 1):
                made = self.restoring.restored(list(fitted), captions, start, number)
                back = np.stack([pixels(one) for one in made])
                gallery = Gallery.of(back)
                singles = [gallery.rows([row]) for row in range(len(back))]
                near.append(
                    [[like.to(one)[0] for like in found] for one, found in zip(singles, likenesses, strict=True)]
                )
                if number == 0:
                    kept.append(back)
            # (B, masks, tries, 2)
            tensors[f"near/{place}"] = torch.tensor(np.array(near, dtype=np.float32).transpose(1, 2, 0, 3).copy())
            report(len(fitted) * (place + 1) / (len(starts) + 1))
        if keep:
            tensors["pictures"] = torch.from_numpy(np.stack([fitted, *kept], axis=1))
        return tensors | self._scale_and_curvature(self.measure.encoded(fitted), captions)

    def _scale_and_curvature(self, clean: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """The critical scale with and without the caption, and the mean curvature difference, of pictures."""
        measure, setup = self.measure, self.measure.setup
        denoiser = setup.family.denoiser()
        none = measure.uncaptioned(len(clean))
        conditions = {"none": none}
        if setup.family.conditional:
            conditions["own"] = measure.inputs(captions)
        tensors = {}
        levels = levels_of(setup, SCALE.levels, LEAST_SCALE)
        with torch.no_grad():
            for name, inputs in conditions.items():
                found = SCALE.of(clean.float(), levels, denoiser, inputs, clean.dtype)
                tensors[f"scale/{name}"] = found.float().cpu()
            if "own" in conditions or setup.checkpoint is not None:
                tensors["curvature"] = self._curvature(clean, conditions.get("own", none), none, captions)
        return tensors

    def _curvature(self, clean: Tensor, own: Any, none: Any, captions: Sequence[str]) -> Tensor:
        """The mean curvature difference at pictures with the least noise, (B,)."""
        measure, setup = self.measure, self.measure.setup
        denoiser, level = setup.family.denoiser(), measure.levels[0]
        noise = measure.noises(0, clean)[0]
        x = (level.alpha * clean + level.sigma * noise).to(clean.dtype)
        cond, uncond = denoiser(x, level, own), denoiser(x, level, none)
        step = Step(0, 1, level.t, cond, uncond, cond, x, own, none, {})
        nothing = {"z": torch.zeros(len(clean), 1)}
        run = Trajectory((level.t,), nothing, {0: step}, x, complete=True)
        baseline = None
        if setup.checkpoint is not None:
            inputs = measure.inputs(captions, of=setup.checkpoint)
            baseline = Baseline(measure.base_denoiser(), inputs).at(step)
        watched = Watched(run, denoiser, baseline)
        found = CurvatureDifference(step=0).map(watched).values
        return found.flatten(1).mean(dim=1).float().cpu()
