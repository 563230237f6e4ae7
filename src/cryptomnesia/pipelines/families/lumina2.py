"""Lumina 2: a transformer that is trained on rectified flow.

The network is given 1 − t/T and predicts x_0 − ε, which the pipeline negates. If the guidance is above 1, it is called
twice per evaluation, first for the conditional branch, and the guided prediction is scaled to the norm of the
conditional one, row by row, unless `cfg_normalization` is off. Behind the part `cfg_trunc_ratio` of the run there is no
unconditional branch.
"""

from typing import ClassVar

from torch import Tensor

from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.settings import Sampling


class Lumina2Family(TransformerFamily):
    """The family of `Lumina2Pipeline`."""

    name: ClassVar[str] = "lumina-2"
    sign: ClassVar[float] = -1.0

    def time(self, t: float, x: Tensor) -> Tensor:
        """The share of the signal, (B,)."""
        return 1 - super().time(t, x) / self.pipe.scheduler.config.num_train_timesteps

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1 in the whole run."""
        return sampling.guidance > 1 and sampling.options.get("cfg_trunc_ratio", 1.0) >= 1
