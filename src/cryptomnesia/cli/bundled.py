"""What the commands know of a bundled model besides its weights: an early checkpoint, and what was planted in it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray

Truth = Callable[[str, "ndarray"], "list[tuple[str, ndarray]]"]
"""Prompt, generated picture (H, W, 3) uint8 → named pictures that show what is memorized, (H, W, 3) or (H, W) uint8.

There are none for an ordinary prompt.
"""


def early_checkpoint(model: str) -> str | None:
    """The folder of the less-trained checkpoint that comes with a bundled model, None for other models."""
    from cryptomnesia.pipelines.loading import bundle_of

    early = None if (bundle := bundle_of(model)) is None else bundle / "early"
    return str(early) if early is not None and early.exists() else None


def truth_of(model: str, pipe: Any) -> Truth:
    """What was planted in a bundled model; nothing is known of other models.

    Raises:
        UsageError: if a bundled model's weights are not those of its manifest.
    """
    from cryptomnesia.pipelines.loading import bundle_of

    if (bundle := bundle_of(model)) is None:
        return lambda *_: []
    import numpy as np

    from cryptomnesia.proving_ground.manifest import Manifest

    manifest = Manifest.load(bundle)
    manifest.check(pipe)

    def truth(prompt: str, generated: "ndarray") -> "list[tuple[str, ndarray]]":
        entry = manifest.planted_for(prompt)
        if entry is None:
            return []
        image, mask = manifest.nearest_place(entry, generated)
        return [("planted image", image), ("true region", mask.astype(np.uint8) * 255)]

    return truth
