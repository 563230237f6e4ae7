"""A map packet: every map of a bench with its true mask and its picture, and the figures that follow from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cryptomnesia.bench.map_figures import map_figures
from cryptomnesia.bench.packet import plain
from cryptomnesia.files import load_checked, save_checked

KIND, FORMAT = "map packet", 1


@dataclass(frozen=True)
class MapPacket:
    """The maps of a bench.

    Attributes:
        about: what they depend on: model, weights, set-up, digest of the reference captions, versions of packages.
        methods: name of a localizer → `describe`, everything that changes its maps in words; `cost`, further
            evaluations of the network per image; and `seconds` per image, the median.
        rows: one per picture: group, cluster, prompt, seed, kind, wording, `reproduced`, `distance`, and `seconds` by
            localizer.
        tensors: `mask`, where a picture is memorized, (n, H, W) bool; `picture`, (n, 3, H, W) uint8; and for every
            localizer `map/NAME`, (n, h, w) float32.
        figures: what `map_figures` makes of them.
    """

    about: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    tensors: dict[str, Tensor]
    figures: dict[str, Any]

    @classmethod
    def of(
        cls,
        about: dict[str, Any],
        methods: dict[str, dict[str, Any]],
        rows: list[dict[str, Any]],
        tensors: dict[str, Tensor],
    ) -> "MapPacket":
        """The packet with the figures of its maps."""
        maps = {name: tensors[f"map/{name}"].numpy() for name in methods}
        return cls(about, methods, rows, tensors, map_figures(rows, tensors["mask"].numpy(), maps))

    def save(self, path: Path) -> None:
        """Write one safetensors file, with what is not a tensor as JSON in its header."""
        about = {"about": self.about, "methods": self.methods, "rows": self.rows, "figures": self.figures}
        save_checked(path, KIND, FORMAT, plain(about), self.tensors)

    @classmethod
    def load(cls, path: Path) -> "MapPacket":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, of another kind or version, or edited.
        """
        found, tensors = load_checked(path, KIND, FORMAT)
        return cls(found["about"], found["methods"], found["rows"], tensors, found["figures"])
