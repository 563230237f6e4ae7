"""Pictures of memorized captions under some mitigations, for people to look at: docs/images/mitigation_GROUND.webp.

    python benchmarks/mitigation_panels.py

Takes the pictures that benchmarks/mitigation.py keeps in .benchmarks-cache; run that first. A mitigation without
pictures there keeps its row of the present panel. Every column is a concept. The rows are the planted picture, the
picture without mitigation, and the pictures under the mitigations of `ROWS`.
"""

from pathlib import Path

import numpy as np
from common import CACHE
from PIL import Image, ImageDraw, ImageFont

from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.remaking import KIND
from cryptomnesia.bench.trials import MEMORIZED
from cryptomnesia.files import load_checked
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest

ROWS = {
    "scenes": ("none", "partial-captions", "region-restricted", "rephrasing", "random-tokens", "embedding-descent"),
    "drawings": (
        "none",
        "partial-captions",
        "rephrasing",
        "guidance-delay",
        "stability-calibrated",
        "embedding-descent",
    ),
}
COLUMNS, SIDE, LABEL = 10, 64, 130


def main() -> None:
    """Draw the panels."""
    for name, methods in ROWS.items():
        folder = CACHE / f"mitigate-{name}"
        manifest = Manifest.load(ground_of(name).bundle)
        rows = Packet.load(Path("docs/results/packets") / f"mitigate-{name}.json.xz").rows
        memorized = [number for number, row in enumerate(rows) if row["group"] == MEMORIZED]
        firsts: dict[str, int] = {}
        for place, number in enumerate(memorized):
            firsts.setdefault(rows[number]["cluster"], place)
        chosen = list(firsts.values())[:: max(1, len(firsts) // COLUMNS)][:COLUMNS]
        path = Path(f"docs/images/mitigation_{name}.webp")
        with Image.open(path) as image:
            present = np.asarray(image.convert("RGB"))
        panel = Image.new("RGB", (LABEL + SIDE * len(chosen), SIDE * (len(methods) + 1)), "white")
        draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
        for row, label in enumerate(("planted", *methods)):
            draw.text((4, row * SIDE + SIDE // 2 - 6), "no mitigation" if label == "none" else label, "black", font)
        for column, place in enumerate(chosen):
            entry = manifest.planted_for(rows[memorized[place]]["prompt"])
            assert entry is not None
            pictures: list[np.ndarray] = [np.asarray(manifest.image(entry))]
            for row, method in enumerate(methods, start=1):
                found = _picture(folder, method, place)
                cell = present[row * SIDE :, LABEL + column * SIDE :][:SIDE, :SIDE]
                pictures.append(cell if found is None else found)
            for row, picture in enumerate(pictures):
                panel.paste(Image.fromarray(picture.astype(np.uint8)), (LABEL + column * SIDE, row * SIDE))
        panel.save(path, quality=85)


def _picture(folder: Path, method: str, place: int) -> np.ndarray | None:
    """The picture of a memorized caption, None where none is kept; those come first in every bench."""
    if not (folder / f"{method}-00000.safetensors").exists():
        return None
    size = len(load_checked(folder / f"{method}-00000.safetensors", KIND, 1)[0]["rows"])
    _, tensors = load_checked(folder / f"{method}-{place // size:05d}.safetensors", KIND, 1)
    return tensors[f"{place % size}"].numpy()


if __name__ == "__main__":
    main()
