"""Pictures of the bench: docs/images/bench_roc.png and docs/images/bench_cost.png.

    python benchmarks/bench_figures.py

They are drawn from the packets in docs/results/packets, and need no model. `bench_roc.png`: for every ground with its
own solver the ROC curves of reproduced pictures against ordinary captions, with a logarithmic axis of false positives,
which matter most where they are few. `bench_cost.png`: the smallest AUC of every detector over the grounds, against
ordinary captions and against captions that fix most pixels, by the evaluations of the network that it takes. Grounds
where only some detectors were measured are left out of the second.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from cryptomnesia.bench.figures import main_part, parts_of
from cryptomnesia.bench.packet import Packet

PACKETS, IMAGES = Path("docs/results/packets"), Path("docs/images")
SHOWN = ("combined", "stability", "guidance-mean", "drift", "information", "condition-jacobian")
"""Detectors of the ROC curves: those that are best on a ground, and `drift`."""


def main() -> None:
    """Draw both pictures."""
    names = [path.name.removesuffix(".json.gz") for path in sorted(PACKETS.glob("*.json.gz"))]
    packets = {name: Packet.load(PACKETS / f"{name}.json.gz") for name in names}
    own = {
        name: packet for name, packet in packets.items() if name == packet.about["model"].removeprefix("the ground ")
    }
    roc(own)
    cost(own)


def roc(packets: dict[str, Packet]) -> None:
    """One panel of curves for every ground."""
    figure, axes = plt.subplots(1, len(packets), figsize=(4 * len(packets), 4), sharey=True, squeeze=False)
    for axis, (ground, packet) in zip(axes[0], packets.items(), strict=True):
        parts = parts_of(packet.rows)
        positive, negative = parts[main_part(parts)], [row for row in packet.rows if row["group"] == "ordinary"]
        for name in SHOWN:
            if name in packet.methods:
                one, other = (scores(rows, name) for rows in (positive, negative))
                thresholds = np.sort(other)[::-1]
                false = np.arange(1, len(thresholds) + 1) / len(thresholds)
                axis.step(false, [(one > threshold).mean() for threshold in thresholds], where="post", label=name)
        axis.set(xscale="log", xlim=(1 / len(negative), 1), ylim=(0, 1.02), title=ground, xlabel="false-positive rate")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("memorized images caught")
    axes[0][-1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(IMAGES / "bench_roc.png", dpi=150)


def scores(rows: Any, name: str) -> np.ndarray:
    """The scores of a detector, without images that have none."""
    found = [row["scores"][name] for row in rows]
    return np.array([score for score in found if score is not None])


def cost(packets: dict[str, Packet]) -> None:
    """The smallest AUC of every detector over the grounds where all were measured, by its cost."""
    packets = {name: one for name, one in packets.items() if any(method["cost"] for method in one.methods.values())}
    shared = sorted(set.intersection(*(set(packet.methods) for packet in packets.values())))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True)
    for axis, (group, words) in zip(
        axes,
        (("ordinary", "never-planted captions"), ("fixed_pixels", "captions that fix most pixels")),
        strict=True,
    ):
        places: dict[str, tuple[float, float]] = {}
        for name in shared:
            values = []
            for packet in packets.values():
                found = packet.figures["detectors"][name]["auc"]
                if (value := found[main_part(found)].get(group)) is not None:
                    values.append(value["value"])
            places[name] = next(iter(packets.values())).methods[name]["cost"], min(values)
        heights: dict[float, float] = {}
        for name, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
            axis.plot(x, y, "o", color="tab:blue" if x == 0 else "tab:gray")
            # names of detectors that are near one another stand above each other
            heights[x] = max(y, heights.get(x, -1) + 0.035)
            axis.annotate(name, (x, y), xytext=(x + 0.08, heights[x]), va="center", fontsize=7)
        axis.set(
            xlabel="evaluations of the network beyond the generation",
            title=f"against {words}",
            ylim=(-0.02, 1.12),
            xlim=(-0.3, 5.6),
        )
        axis.axhline(0.5, color="black", linewidth=0.5, linestyle=":")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("smallest AUC over " + " and ".join(packets))
    figure.tight_layout()
    figure.savefig(IMAGES / "bench_cost.png", dpi=150)


if __name__ == "__main__":
    main()
