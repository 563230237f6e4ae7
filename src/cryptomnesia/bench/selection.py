"""Which detector the evidence picks: chosen on some models, and reported on one that is unlike them."""

from collections.abc import Iterable, Mapping
from typing import Any

from cryptomnesia.bench.figures import main_part
from cryptomnesia.bench.packet import Packet

DECISIVE = ("ordinary", "fixed_pixels")
"""Groups of negatives whose AUCs decide, where a ground has them: the usual case, and the hardest one."""


def left_out(packets: Mapping[str, Packet], families: Mapping[str, str]) -> dict[str, Any]:
    """For every ground the detector that the grounds of other families choose, and what it reaches on this one.

    Grounds of one family have the same pictures or the same base, so none of them chooses for another. Grounds without
    an unconditional branch choose for grounds without one alone, because fewer detectors work there. The choice is the
    detector whose smallest AUC is the largest, over all choosing grounds and the groups `DECISIVE`.

    Args:
        packets: name of a ground → its packet. One in which no planted picture was reproduced is left out.
        families: name of a ground → its family.

    Returns:
        Ground → `chosen_by`, the names of the other grounds, `free`, chosen among the detectors that cost no evaluation
        of the network and took part on all these grounds, and `any`, among all that did: the `detector`,
        `worst_elsewhere`, its smallest AUC on the other grounds, and its `auc` by group and `tpr_at_1pct` against
        ordinary captions on this ground, with intervals. Grounds for which no other one can choose are absent.
    """
    usable = {name: packet for name, packet in packets.items() if _main(packet) is not None}
    found: dict[str, Any] = {}
    for ground, packet in usable.items():
        others = {
            name: other
            for name, other in usable.items()
            if families[name] != families[ground] and _guided(other) == _guided(packet)
        }
        if not others:
            continue
        shared = set.intersection(*(set(one.methods) for one in (packet, *others.values())))
        free = {name for name in shared if packet.methods[name]["cost"] == 0}
        found[ground] = {"chosen_by": list(others)} | {
            label: _reported(packet, *_chosen(list(others.values()), candidates))
            for label, candidates in (("free", free), ("any", shared))
            if candidates
        }
    return found


def _main(packet: Packet) -> str | None:
    """The part of the positives that counts."""
    return main_part(next(iter(packet.figures["detectors"].values()))["auc"])


def _guided(packet: Packet) -> bool:
    """Whether the runs have an unconditional branch."""
    return "guidance-mean" in packet.methods


def _chosen(packets: list[Packet], candidates: Iterable[str]) -> tuple[str, float]:
    """The detector whose smallest AUC is the largest, and that AUC."""
    return max(((name, min(_values(packets, name))) for name in sorted(candidates)), key=lambda pair: pair[1])


def _values(packets: list[Packet], name: str) -> list[float]:
    """The AUCs of a detector that decide; 0 where it could not judge."""
    values = []
    for packet in packets:
        against = packet.figures["detectors"][name]["auc"][_main(packet)]
        values += [0.0 if against[group] is None else against[group]["value"] for group in DECISIVE if group in against]
    return values


def _reported(packet: Packet, name: str, worst: float) -> dict[str, Any]:
    figures, part = packet.figures["detectors"][name], _main(packet)
    return {
        "detector": name,
        "worst_elsewhere": worst,
        "auc": figures["auc"][part],
        "tpr_at_1pct": figures["tpr_at_1pct"][part].get("ordinary"),
    }
