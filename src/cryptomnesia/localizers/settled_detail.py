"""Settled detail: how much of the picture's detail is settled early in the run. A method of this library.

`collapse` says what share of the posterior variance is gone early in the run. In a memorized region it is gone, and
also on a plain background that the caption names, where there is little to settle. This map asks how much was settled.
It compares the detail that the finished picture has around a place with the variance that was left there:
½ log(1 + detail / variance left), the capacity of a Gaussian channel with the detail as its signal and the variance
left as its noise, in nats for each entry of the latents. A plain background has little detail, so its map is low,
however firmly it is settled. Detail that is still open early in the run gives at most ½ log(1 + detail): 0.35 where the
detail is 1, the variance of the latents of latent-diffusion models. Settled detail of 1 gives up to 2.

The floor of the variance was chosen on the pictures of the grounds `scenes` and `drawings`, and so was the choice of
latents instead of pixels and of windows as wide as those of `collapse`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cryptomnesia.localizers.base import Map, Watched, finite, named
from cryptomnesia.localizers.collapse import Collapse, radius, wide_x0
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
        "You need a mask: a region with a threshold that was fixed on other pictures. Of all maps this one failed on "
        "none of the models on which maps were measured. Its mean is also a detector, and holds on fine-tunes, where "
        "the default detector fails."
    )
    avoid_when = (
        "Exact outlines matter: detail is averaged over half the picture's side, so the mask spills over the edge of a "
        "memorized region, and plain parts of a memorized picture may stay unmarked. Then try `collapse`. You want to "
        "decide early in the run: the detail is known at its end."
    )

    @property
    def name(self) -> str:
        """`settled-detail`, followed by the baseline of the guide unless that is the unconditional branch."""
        return named("settled-detail", self.baseline)

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """Those of `collapse`, and the last one, at which the detail is seen."""
        return *super().evaluations, -1

    @torch.no_grad()
    def map(self, watched: Watched) -> Map:
        """The settled detail of every image, (B, h, w), ≥ 0, with the errors that follow from those of the share."""
        last = watched.trajectory.step(-1)
        detail = local_detail(finite(wide_x0(last.guided)), last.cond_inputs)
        found = super().map(watched)
        detail = detail.to(found.values)

        def capacity(share: Tensor) -> Tensor:
            return torch.log1p(detail / (1 - share).clamp_min(FLOOR)) / 2

        share, error = found.values, found.errors
        errors = None if error is None else (capacity(share + error) - capacity(share - error)) / 2
        return Map(capacity(share), errors)


def local_detail(latents: Tensor, inputs: Inputs) -> Tensor:
    """How much latents vary around every place, (B, h, w): a quarter of the mean squared gradient of their channels.

    The gradient is that of differences from the neighbours above and to the left; the first row and the first column
    have one of the two. The mean is over the windows of the filter of `collapse`. Away from these edges, noise without
    structure has its variance as detail.

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
