"""Pictures of the bench and the grounds: bench_roc.png, bench_cost.png and dose_response.png in docs/images.

    python benchmarks/bench_figures.py

They are drawn from the packets in docs/results/packets, and need no model. `bench_roc.png`: for every ground with its
own solver the ROC curves of reproduced pictures against ordinary captions, with a logarithmic axis of false positives,
which matter most where they are few. `bench_cost.png`: the smallest AUC of every detector over the grounds, against
ordinary captions and against captions that fix most pixels, by the evaluations of the network that it takes. Grounds
where only some detectors were measured are left out of the second. `dose_response.png`, from docs/results/grounds.json:
how many generations reproduce a planted picture, by the number of its exposures in training.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from cryptomnesia.bench.figures import main_part, parts_of
from cryptomnesia.bench.packet import Packet

PACKETS, IMAGES = Path("docs/results/packets"), Path("docs/images")
SHOWN = (
    "early-detail",
    "combined",
    "stability",
    "guidance-mean",
    "drift",
    "information",
    "condition-jacobian",
    "settled-detail",
    "base-difference",
)
"""Detectors of the ROC curves, where they were measured: those that are best on a ground, and `drift`."""


def main() -> None:
    """Draw both pictures."""
    names = [path.name.removesuffix(".json.xz") for path in sorted(PACKETS.glob("*.json.xz"))]
    packets = {name: Packet.load(PACKETS / f"{name}.json.xz") for name in names}
    own = {
        name: packet for name, packet in packets.items() if name == packet.about["model"].removeprefix("the ground ")
    }
    roc(own)
    cost(own)
    dose_response(json.loads(Path("docs/results/grounds.json").read_text(encoding="utf-8"))["grounds"])


def roc(packets: dict[str, Packet]) -> None:
    """One panel of curves for every ground."""
    columns = 3
    rows = -(-len(packets) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 4 * rows), sharey=True, squeeze=False)
    for axis in axes.flat[len(packets) :]:
        axis.set_axis_off()
    for axis, (ground, packet) in zip(axes.flat, packets.items(), strict=False):
        parts = parts_of(packet.rows)
        positive, negative = parts[main_part(parts)], [row for row in packet.rows if row["group"] == "ordinary"]
        for name in SHOWN:
            if name in packet.methods:
                one, other = (scores(rows, name) for rows in (positive, negative))
                thresholds = np.sort(other)[::-1]
                false = np.arange(1, len(thresholds) + 1) / len(thresholds)
                caught = [(one > threshold).mean() for threshold in thresholds]
                axis.step(false, caught, where="post", label=name, color=f"C{SHOWN.index(name)}")
        axis.set(xscale="log", xlim=(1 / len(negative), 1), ylim=(0, 1.02), title=ground, xlabel="false-positive rate")
        axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("memorized images caught")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    axes.flat[-1].legend([lines[name] for name in SHOWN], SHOWN, loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(IMAGES / "bench_roc.png", dpi=110)


def scores(rows: Any, name: str) -> np.ndarray:
    """The scores of a detector, without images that have none."""
    found = [row["scores"][name] for row in rows]
    return np.array([score for score in found if score is not None])


def cost(packets: dict[str, Packet]) -> None:
    """The smallest AUC of every detector over the grounds where nearly all were measured, by its cost."""
    packets = {name: one for name, one in packets.items() if "condition-jacobian" in one.methods}
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
    axes[0].set_ylabel(f"smallest AUC over {len(packets)} models")
    figure.suptitle(", ".join(packets), fontsize=9)
    figure.tight_layout()
    figure.savefig(IMAGES / "bench_cost.png", dpi=110)


def dose_response(grounds: dict[str, Any]) -> None:
    """One panel of curves for every kind of concept, with 95% intervals."""
    # fine-tunes and the flow model have no ladder
    ladders = {
        name: found["dose_response"]
        for name, found in grounds.items()
        if len(found.get("dose_response", {}).get("verbatim", ())) > 2
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
    for axis, kind in zip(axes, ("verbatim", "template", "object"), strict=True):
        for place, (name, kinds) in enumerate(ladders.items()):
            rungs = kinds.get(kind, {})
            # beside one another, so that intervals can be told apart
            exposures = [float(rung) * 1.04**place for rung in rungs]
            values = [share["value"] for share in rungs.values()]
            ends = [[abs(share[end] - share["value"]) for share in rungs.values()] for end in ("low", "high")]
            axis.errorbar(exposures, values, yerr=ends, fmt=f"C{place}o-", capsize=2, linewidth=1, ms=3, label=name)
        axis.set(xscale="log", ylim=(-0.02, 1.02), title=kind, xlabel="exposures in training")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("generations that reproduce the picture")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(IMAGES / "dose_response.png", dpi=110)


if __name__ == "__main__":
    main()
