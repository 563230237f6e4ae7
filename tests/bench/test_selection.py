"""Leaving one ground out, on packets that were made up."""

from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.selection import left_out


def packet(costs, **aucs):
    """A packet with AUCs by detector: against ordinary captions and, where a second one is given, fixed pixels."""
    figures = {
        name: {
            "auc": {"reproduced": dict(zip(("ordinary", "fixed_pixels"), map(estimate, values), strict=False))},
            "tpr_at_1pct": {"reproduced": {"ordinary": estimate(values[0])}},
        }
        for name, values in aucs.items()
    }
    return Packet({}, {name: {"cost": costs.get(name, 0)} for name in aucs}, [], {"detectors": figures})


def estimate(value):
    return None if value is None else {"value": value, "low": value, "high": value}


def test_what_wins_only_at_home_is_not_chosen():
    costs = {"dear": 3}
    packets = {
        "home": packet(costs, mine=(1.0, 1.0), steady=(0.9, 0.8), dear=(0.95, 0.9)),
        "abroad": packet(costs, mine=(0.5, 0.4), steady=(0.85, 0.8), dear=(0.9, 0.9), alone=(1.0, 1.0)),
        "no fixed pixels": packet(costs, mine=(0.6,), steady=(0.95,), dear=(None,)),
    }
    found = left_out(packets)
    assert {ground: chosen["free"]["detector"] for ground, chosen in found.items()} == dict.fromkeys(packets, "steady")
    assert found["home"]["free"]["worst_elsewhere"] == 0.8
    assert found["home"]["free"]["auc"] == {"ordinary": estimate(0.9), "fixed_pixels": estimate(0.8)}
    assert found["home"]["free"]["tpr_at_1pct"] == estimate(0.9)
    # a detector that could not judge one of the others is not chosen, and one that took part in few is no candidate
    assert found["home"]["any"]["detector"] == "steady"
    assert found["no fixed pixels"]["any"]["detector"] == "dear"
