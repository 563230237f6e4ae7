"""Settled detail: how much of the picture's detail is settled early in the run. A method of this library.

`collapse` says what share of the posterior variance is gone early in the run. In a memorized region it is gone, and
also on a plain background that the caption names, where there is little to settle. This map asks how much was settled.
It compares the detail that the finished picture has around a place with the variance that was left there:
½ log(1 + detail / variance left), the capacity of a Gaussian channel with the detail as its signal and the variance
left as its noise, in nats for each entry of the latents. A plain background has no detail, so its map is near 0,
however firmly it is settled. Where detail is still open early in the run, the map is near 0 too.

The floor of the variance, and latents instead of pixels, were chosen on the pictures of the grounds `scenes` and
`drawings`, of which the maps of `collapse` had shown the shortcomings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cryptomnesia.localizers.base import Map, Watched, finite, named, wide
from cryptomnesia.localizers.collapse import Collapse, radius
from cryptomnesia.pipelines.inputs import Inputs, unpacked
from cryptomnesia.tracing.trajectory import Place

FLOOR = 0.02
"""The smallest variance that is left, of latents of variance 1; below it the estimate is an error of the network."""


@dataclass(frozen=True)
class SettledDetail(Collapse):
    """Half the logarithm of 1 + detail / variance left, at every place; in nats.

    Settings are those of `Collapse`, from which the variance left is taken. The detail is that of the estimate of the
    picture at the last evaluation.
    """

    summary = "How much of the picture's detail is settled early in the run, at every place."
    use_when = (
        "You look for memorized objects, or captions name plain backgrounds. `collapse` finds no such objects, and "
        "marks such backgrounds."
    )
    avoid_when = (
        "Exact outlines matter: detail is averaged over half the picture's side, so the edge of a memorized region is "
        "blurred, and plain parts of a memorized picture may stay unmarked. You want to decide early in the run: the "
        "detail is known at its end."
    )

    @property
    def name(self) -> str:
        """`settled-detail`, followed by the baseline of the guide unless that is the unconditional branch."""
        return named("settled-detail", self.baseline)

    @property
    def observes(self) -> str:
        """The posterior variance early in the run, which follows from the Jacobian there, and the finished picture."""
        return "the Jacobian early in the run, and the picture"

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """Those of `collapse`, and the last one, at which the detail is seen."""
        return *super().evaluations, -1

    @torch.no_grad()
    def map(self, watched: Watched) -> Map:
        """The settled detail of every image, (B, h, w), ≥ 0, with errors that the error of the variance causes."""
        share = super().map(watched)
        last = watched.trajectory.step(-1)
        detail = local_detail(finite(wide(last.guided.x0)), last.cond_inputs).to(share.values)
        left = (1 - share.values).clamp_min(FLOOR)
        errors = None if share.errors is None else share.errors * detail / (2 * left * (left + detail))
        return Map(torch.log1p(detail / left) / 2, errors)


def local_detail(latents: Tensor, inputs: Inputs) -> Tensor:
    """How much latents vary around every place, (B, h, w): a quarter of the mean squared gradient of their channels.

    The mean is over the windows of the filter of `collapse`. Noise without structure has its variance as detail.

    Args:
        latents: (B, C, h, w), or packed, (B, tokens, channels).
        inputs: conditioning of the network, which tells where the tokens of packed latents are.
    """
    values = unpacked(latents, inputs)
    energy = torch.zeros_like(values)
    energy[..., 1:, :] += values.diff(dim=-2) ** 2
    energy[..., :, 1:] += values.diff(dim=-1) ** 2
    size = radius(values)
    mean = energy.mean(dim=1, keepdim=True) / 4
    return avg_pool2d(mean, 2 * size + 1, 1, size, count_include_pad=False)[:, 0]


def against_empty() -> SettledDetail:
    """Make `settled-detail-empty`, whose guide compares with an empty caption."""
    return SettledDetail(baseline="empty")


def against_checkpoint() -> SettledDetail:
    """Make `settled-detail-checkpoint`, whose guide compares with a less-trained checkpoint."""
    return SettledDetail(baseline="checkpoint")
