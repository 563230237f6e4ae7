"""Which detector the evidence picks: chosen on all grounds but one, and reported on the one that took no part."""

from collections.abc import Iterable, Mapping
from typing import Any

from cryptomnesia.bench.figures import main_part
from cryptomnesia.bench.packet import Packet

DECISIVE = ("ordinary", "fixed_pixels")
"""Groups of negatives whose AUCs decide, where a ground has them: the usual case, and the hardest one."""


def left_out(packets: Mapping[str, Packet]) -> dict[str, Any]:
    """For every ground the detector that the other grounds choose, and what it reaches on this one.

    The choice is the detector whose smallest AUC is the largest, over all other grounds and the groups `DECISIVE`. Only
    detectors that every packet has take part.

    Args:
        packets: name of a ground → its packet, at least two.

    Returns:
        Ground → `free`, chosen among the detectors that cost no evaluation of the network, and `any`, among all: the
        `detector`, `worst_elsewhere`, its smallest AUC on the other grounds, and its `auc` by group and `tpr_at_1pct`
        against ordinary captions on this ground, with intervals.
    """
    shared = set.intersection(*(set(packet.methods) for packet in packets.values()))
    free = {name for name in shared if all(packet.methods[name]["cost"] == 0 for packet in packets.values())}
    found: dict[str, Any] = {}
    for ground, packet in packets.items():
        others = [other for name, other in packets.items() if name != ground]
        found[ground] = {
            label: _reported(packet, *_chosen(others, candidates))
            for label, candidates in (("free", free), ("any", shared))
            if candidates
        }
    return found


def _chosen(packets: list[Packet], candidates: Iterable[str]) -> tuple[str, float]:
    """The detector whose smallest AUC is the largest, and that AUC."""
    return max(((name, min(_values(packets, name))) for name in sorted(candidates)), key=lambda pair: pair[1])


def _values(packets: list[Packet], name: str) -> list[float]:
    """The AUCs of a detector that decide; 0 where it could not judge."""
    values = []
    for packet in packets:
        found = packet.figures["detectors"][name]["auc"]
        against = found[main_part(found)]
        values += [0.0 if against[group] is None else against[group]["value"] for group in DECISIVE if group in against]
    return values


def _reported(packet: Packet, name: str, worst: float) -> dict[str, Any]:
    figures = packet.figures["detectors"][name]
    part = main_part(figures["auc"])
    return {
        "detector": name,
        "worst_elsewhere": worst,
        "auc": figures["auc"][part],
        "tpr_at_1pct": figures["tpr_at_1pct"][part].get("ordinary"),
    }
