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


def chosen(packets, kind="free", **families):
    found = left_out(packets, {name: families.get(name, name) for name in packets})
    return {ground: choice[kind]["detector"] for ground, choice in found.items()}


def test_grounds_of_one_family_do_not_choose_for_each_other():
    packets = {
        "base": packet({}, mine=(1.0,), steady=(0.9,)),
        "tuned": packet({}, mine=(1.0,), steady=(0.9,)),
        "other": packet({}, mine=(0.5,), steady=(0.8,)),
    }
    families = {"base": "one", "tuned": "one"}
    assert chosen(packets, **families) == {"base": "steady", "tuned": "steady", "other": "mine"}
    assert left_out(packets, {**families, "other": "other"})["base"]["chosen_by"] == ["other"]
    # nothing is left that could choose
    assert left_out({name: packets[name] for name in families}, families) == {}


def test_grounds_without_guidance_choose_for_grounds_without_it():
    guided = {"guidance-mean": (0.9,), "steady": (0.8,)}
    packets = {
        "a": packet({}, **guided),
        "b": packet({}, **guided),
        "c": packet({}, steady=(0.7,), late=(0.9,)),
        "d": packet({}, steady=(0.7,), late=(0.9,)),
    }
    assert chosen(packets) == {"a": "guidance-mean", "b": "guidance-mean", "c": "late", "d": "late"}


def test_a_ground_where_nothing_was_reproduced_takes_no_part():
    packets = {name: packet({}, steady=(0.9,)) for name in "abc"}
    for figures in packets["c"].figures["detectors"].values():
        for figure in ("auc", "tpr_at_1pct"):
            figures[figure] = {"not_reproduced": figures[figure]["reproduced"]}
    assert chosen(packets).keys() == {"a", "b"}


def test_what_wins_only_at_home_is_not_chosen():
    costs = {"dear": 3}
    packets = {
        "home": packet(costs, mine=(1.0, 1.0), steady=(0.9, 0.8), dear=(0.95, 0.9)),
        "abroad": packet(costs, mine=(0.5, 0.4), steady=(0.85, 0.8), dear=(0.9, 0.9), alone=(1.0, 1.0)),
        "no fixed pixels": packet(costs, mine=(0.6,), steady=(0.95,), dear=(None,)),
    }
    found = left_out(packets, {name: name for name in packets})
    assert chosen(packets) == dict.fromkeys(packets, "steady")
    assert found["home"]["free"]["worst_elsewhere"] == 0.8
    assert found["home"]["free"]["auc"] == {"ordinary": estimate(0.9), "fixed_pixels": estimate(0.8)}
    assert found["home"]["free"]["tpr_at_1pct"] == estimate(0.9)
    # a detector that could not judge one of the others is not chosen, and one that took part in few is no candidate
    assert found["home"]["any"]["detector"] == "steady"
    assert found["no fixed pixels"]["any"]["detector"] == "dear"
