"""What is asked of a training: captions, each with the pictures that have it, of checkpoints at some scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptomnesia.finetuning.checkpoints import Checkpoint


@dataclass(frozen=True)
class Group:
    """A caption and the pictures that have it.

    Attributes:
        caption: "" for a model without captions.
        rows: numbers of the pictures, among those of the training or those that were held out.
        trained: whether they are pictures of the training.
    """

    caption: str
    rows: Sequence[int]
    trained: bool


@dataclass(frozen=True)
class Variant:
    """What is measured: a checkpoint, and the scale of its LoRA."""

    checkpoint: Checkpoint
    scale: float = 1.0

    @property
    def key(self) -> str:
        """The beginning of the names of its files."""
        return sha256(f"{self.checkpoint.digest} {self.scale}".encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """As the progress bar calls it."""
        return self.checkpoint.name if self.scale == 1 else f"{self.checkpoint.name} at scale {self.scale:g}"


def grouped(captions: Sequence[str], *, trained: bool) -> list[Group]:
    """The captions with the numbers of the pictures that have them."""
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    return [Group(caption, numbers, trained) for caption, numbers in rows.items()]
