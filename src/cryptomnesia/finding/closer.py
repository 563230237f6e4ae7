"""The closer look: what comes back of pictures from noise, how near it is to them, critical scale and curvature.

Pictures and controls are looked at in the same way. What comes back is compared with the picture as a whole and within
a mask. A picture has one mask. A control has one beside every picture that is looked at, because a mask depends on
what the control is compared with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.detectors.critical_scale import CriticalScale
from cryptomnesia.finding.judging import Judged
from cryptomnesia.finding.measuring import Measure, levels_of
from cryptomnesia.finding.restoring import NOISY, Gallery, Likeness, Restoring, tries
from cryptomnesia.images import pixels
from cryptomnesia.localizers.base import Watched
from cryptomnesia.localizers.baseline import Baseline
from cryptomnesia.localizers.curvature import CurvatureDifference
from cryptomnesia.parts import Report
from cryptomnesia.tracing.trajectory import Step, Trajectory

SCALE = CriticalScale()

LEAST_SCALE = 0.02
"""σ/α of the lowest level among which the critical scale is searched."""

LOCAL_LEVELS = 12
"""Levels, from `NOISY` on, among which the critical scale of places is searched: as dense as 24 from `LEAST_SCALE` on.

At less noise nearly all places of any picture are retained, which says nothing and costs most.
"""


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
        captions: Mapping[str, Sequence[str]],
        likenesses: Sequence[Sequence[Likeness]],
        report: Report,
        *,
        keep: bool,
    ) -> dict[str, Tensor]:
        """Restorations, critical scale and curvature of pictures.

        Args:
            fitted: pictures at the size that the model makes, (B, H, W, 3) uint8.
            captions: condition → a caption per picture; the `own` ones, and with a model that reads captions also empty
                ones as `none`, and those of an `other` picture, "" where there is none.
            likenesses: per picture, what is compared with it.
            report: called with the number of pictures that are done.
            keep: whether what comes back is kept.
        """
        tensors: dict[str, Tensor] = {}
        starts = self.restoring.starts
        for number, (condition, texts) in enumerate(captions.items()):
            kept: list[np.ndarray] = []
            missing = [condition == "other" and not text for text in texts]
            for place, start in enumerate(starts):
                near = []
                for seed in range(tries(condition, start)):
                    made = self.restoring.restored(list(fitted), texts, start, seed)
                    back = np.stack([pixels(one) for one in made])
                    near.append(_near(back, likenesses))
                    if seed == 0:
                        kept.append(back)
                if near:
                    # (B, masks, tries, 2)
                    values = torch.from_numpy(np.stack(near, axis=2))
                    values[missing] = torch.nan
                    tensors[f"near/{condition}/{place}"] = values
            if keep and not all(missing):
                tensors[f"kept/{condition}"] = torch.from_numpy(np.stack(kept, axis=1))
            report(len(fitted) * (number + 1) / (len(captions) + 1))
        if keep:
            tensors["kept/picture"] = torch.from_numpy(fitted[:, None])
        clean = self.measure.encoded(fitted)
        return {**tensors, **self._scales(clean, captions), **self._curvatures(clean, captions["own"])}

    @torch.no_grad()
    def _scales(self, clean: Tensor, captions: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """The critical scale of pictures under all conditions, and at every place under their captions."""
        measure, setup = self.measure, self.measure.setup
        denoiser = setup.family.denoiser()
        levels, local = levels_of(setup, SCALE.levels, LEAST_SCALE), levels_of(setup, LOCAL_LEVELS, NOISY)
        conditions = {"none": measure.uncaptioned(len(clean))}
        conditions |= {name: measure.inputs(captions[name]) for name in ("own", "other") if setup.family.conditional}
        found = {
            f"scale/{name}": SCALE.of(clean.float(), levels, denoiser, inputs, clean.dtype).float().cpu()
            for name, inputs in conditions.items()
        }
        if "other" in conditions:
            found["scale/other"][[not text for text in captions["other"]]] = torch.nan
        captioned = conditions.get("own", conditions["none"])
        return {**found, "scale map": SCALE.local(clean.float(), local, denoiser, captioned, clean.dtype).float()}

    @torch.no_grad()
    def _curvatures(self, clean: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """The mean curvature difference at pictures with the least noise, by what it is compared with, (B,) each."""
        measure, setup = self.measure, self.measure.setup
        denoiser, level = setup.family.denoiser(), measure.levels[0]
        none = measure.uncaptioned(len(clean))
        own = measure.inputs(captions) if setup.family.conditional else none
        x = (level.alpha * clean + level.sigma * measure.noises(0, clean)[0]).to(clean.dtype)
        cond, uncond = denoiser(x, level, own), denoiser(x, level, none)
        step = Step(0, 1, level.t, cond, uncond, cond, x, own, none, {})
        run = Trajectory((level.t,), {"z": torch.zeros(len(clean), 1)}, {0: step}, x, complete=True)
        baselines: dict[str, Baseline | None] = {"none": None} if setup.family.conditional else {}
        if setup.checkpoint is not None:
            inputs = measure.inputs(captions, of=setup.checkpoint)
            baselines["base"] = Baseline(measure.base_denoiser(), inputs).at(step)
        maps = {
            name: CurvatureDifference(step=0).map(Watched(run, denoiser, baseline)).values
            for name, baseline in baselines.items()
        }
        return {f"curvature/{name}": values.flatten(1).mean(dim=1).float().cpu() for name, values in maps.items()}


def _near(back: np.ndarray, likenesses: Sequence[Sequence[Likeness]]) -> np.ndarray:
    """How near what came back, (B, H, W, 3) uint8, is to what it is compared with, (B, masks, 2) float32."""
    gallery = Gallery.of(back)
    singles = [gallery.rows([row]) for row in range(len(back))]
    near = [[like.to(one)[0] for like in found] for one, found in zip(singles, likenesses, strict=True)]
    return np.array(near, dtype=np.float32)
