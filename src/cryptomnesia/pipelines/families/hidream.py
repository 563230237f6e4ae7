"""HiDream: a transformer with experts that is trained on rectified flow, with batched guidance.

If the guidance is above 1, the network is called once per evaluation with both branches, the unconditional samples
first. It predicts x_0 − ε, which the pipeline negates. The embeddings of all layers of Llama 3 are one tensor with the
images in its second dimension.
"""

from typing import ClassVar

from cryptomnesia.pipelines.families.transformer import TransformerFamily


class HiDreamFamily(TransformerFamily):
    """The family of `HiDreamImagePipeline`."""

    name: ClassVar[str] = "hidream"
    time_name: ClassVar[str] = "timesteps"
    stacked: ClassVar[frozenset[str]] = frozenset({"encoder_hidden_states_llama3"})
    sign: ClassVar[float] = -1.0
    solvers: ClassVar[frozenset[str]] = frozenset(
        {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler"}
    )
