"""Z-Image: a transformer that takes lists of samples and captions, trained on rectified flow.

The network is given (1000 − t)/1000 and predicts x_0 − ε, which the pipeline negates. A sample is (C, 1, h, w), and a
caption has as many embeddings as it has tokens. If the guidance is above 0, the network is called once per evaluation
with both branches, the conditional samples first. The guided prediction is cond + guidance·(cond − uncond). Behind the
part `cfg_truncation` of the run there is no unconditional branch.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.settings import Sampling


class ZImageFamily(TransformerFamily):
    """The family of `ZImagePipeline`."""

    name: ClassVar[str] = "z-image"
    sample_name: ClassVar[str] = "x"
    time_name: ClassVar[str] = "t"
    first: ClassVar[Literal["cond", "uncond"]] = "cond"
    listed: ClassVar[frozenset[str]] = frozenset({"cap_feats"})
    sign: ClassVar[float] = -1.0
    # the pipeline puts the captions of a list into a template, in the caller's list
    keeps_captions: ClassVar[bool] = False
    solvers: ClassVar[frozenset[str]] = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"})

    def time(self, t: float, x: Tensor) -> Tensor:
        """The share of the signal, (B,)."""
        return (1000 - super().time(t, x)) / 1000

    def samples_of(self, given: Any) -> Tensor:
        """The samples of a list, (n, C, h, w)."""
        return torch.stack(list(given)).squeeze(2)

    def value_of(self, output: Any) -> Tensor:
        """The predictions of a list, (n, C, h, w)."""
        return torch.stack(list(output[0])).squeeze(2)

    def given(self, x: Tensor) -> list[Tensor]:
        """Noisy samples (B, C, h, w) as a list of (C, 1, h, w)."""
        return list(x.unsqueeze(2).unbind(0))

    def native(self) -> tuple[int, int]:
        """The pipeline's default size, which does not depend on the network."""
        return 1024, 1024

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 0 in the whole run."""
        truncation = sampling.options.get("cfg_truncation")
        return sampling.guidance > 0 and (truncation is None or truncation >= 1)
