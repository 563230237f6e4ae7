"""Is a checkpoint one of this base model?"""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from cryptomnesia.errors import UsageError
from cryptomnesia.finetuning.weight_files import UnfinishedError, header_of
from cryptomnesia.localizers.baseline import check_checkpoint
from cryptomnesia.pipelines.contents.adapters import without_adapters
from cryptomnesia.pipelines.contents.walk import Walk
from cryptomnesia.pipelines.contents.weights import weights_of
from cryptomnesia.pipelines.families import family_of

logger = logging.getLogger("cryptomnesia")

LIKE = 0.5
"""Mean cosine similarity of weights to those of the base below which a checkpoint counts as one of another base.

Measured on the bundled models: .993 and more between drawings and the checkpoints of a fine-tune in full (450 steps at
a rate of .001); .96 between scenes and a LoRA fused into it after 600 steps at a rate of .005; .76 (scenes) and .62
(drawings) between the end of a training from scratch and a checkpoint from its beginning, from where weights move
farther than in a fine-tune; between -.002 and .02 for random weights, or for the tensors that scenes and drawings have
in common by name and shape.
"""

_ARCHITECTURES = {"sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "sd_v": "StableDiffusion", "flux": "Flux"}
"""Beginning of `ss_base_model_version` in kohya's metadata → beginning of the name of a pipeline's class."""


def check_same_base(base_pipe: Any, pipe: Any) -> None:
    """Refuse a checkpoint of another base model.

    It has to have the latents and the noise schedule of the base, the same weights by name and shape, and values near
    them: the mean cosine similarity over the weights of the denoiser with two and more dimensions is at least `LIKE`.
    An adapter is not looked at, as it has been refused already if it does not fit.

    Args:
        base_pipe: the base model.
        pipe: the checkpoint, loaded like the base.

    Raises:
        UsageError: saying what differs.
    """
    check_checkpoint(pipe, base_pipe, decoded=False)
    base, found = _weights(base_pipe), _weights(pipe)
    odd = sorted(base.keys() ^ found.keys())
    odd += [name for name in base.keys() & found.keys() if base[name].shape != found[name].shape]
    if odd:
        raise UsageError(
            f"the checkpoint has another layout than the base: {len(odd)} of its weights differ in name or shape, "
            f"{odd[0]} for one; give the model that was trained further as the base"
        )
    alike = likeness(base, found)
    if alike < LIKE:
        raise UsageError(
            f"the checkpoint was trained on another base: its weights have a mean cosine similarity of {alike:.2f} to "
            f"this one's, and at least {LIKE} is expected; give the model that was trained further as the base"
        )


def likeness(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Mean cosine similarity, in [-1, 1], of tensors with the same names and two or more dimensions."""
    found = [
        cosine_similarity(value.flatten().float(), others[name].flatten().float().to(value.device), dim=0).item()
        for name, value in weights.items()
        if value.dim() > 1
    ]
    return sum(found) / max(1, len(found))


def warn_of_another_base(file: Path, pipe: Any) -> None:
    """Warn of a LoRA that says that it was trained on another kind of model than this one."""
    try:
        version = header_of(file).metadata.get("ss_base_model_version", "")
    except UnfinishedError:
        return
    expected = next((kind for start, kind in _ARCHITECTURES.items() if version.startswith(start)), None)
    if expected is None:
        return
    kind = type(pipe).__name__
    stem = max((name for name in _ARCHITECTURES.values() if kind.startswith(name)), key=len, default=kind)
    velocity = version.startswith("sd_v") and version.endswith("_v")
    if stem != expected or (velocity and family_of(pipe).kind == "epsilon"):
        logger.warning("%s says that it was trained on %s, and the base is a %s", file.name, version, kind)


def _weights(pipe: Any) -> dict[str, Tensor]:
    """The weights of the denoiser by name, without adapters."""
    family: Any = family_of(pipe)
    walk = Walk.through(family.module)
    found = without_adapters(walk, weights_of("denoiser", walk))
    return {name: value for name, value in found.items() if value.is_floating_point()}
