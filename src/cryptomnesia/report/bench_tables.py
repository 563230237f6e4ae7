"""Tables of benches on the console."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cryptomnesia.bench.map_packet import MapPacket
    from cryptomnesia.bench.packet import Packet


def print_bench(packet: "Packet") -> None:
    """One line per detector, the best first: AUC of reproduced pictures against every group of negatives."""
    from cryptomnesia.bench.figures import main_group, main_part

    counts, figures = packet.figures["counts"], packet.figures["detectors"]
    parts = next(iter(figures.values()))["auc"]
    if (main := main_part(parts)) is None:
        Console().print(_none_reproduced(packet.about["model"], counts))
        return
    first = main_group(parts[main])
    groups = [first, *(group for group in parts[main] if group != first)]
    images = counts[main]
    table = Table(
        title=f"{packet.about['model']}: {main}, {images['images']} images of {images['clusters']} concepts",
        title_justify="left",
        caption="AUC against each group of negatives, with its 95% interval for the first; caught at 1% false "
        "positives of the first; evaluations of the network beyond the generation",
        caption_justify="left",
    )
    table.add_column("detector", no_wrap=True)
    for group in groups:
        table.add_column(f"{group}\n{counts[group]['images']} images", justify="right")
    for heading in ("caught at 1%", *(["not reproduced"] if "not_reproduced" in parts else []), "evaluations"):
        table.add_column(heading, justify="right")

    def rank(name: str) -> float:
        value = figures[name]["auc"][main][groups[0]]
        return -1.0 if value is None else value["value"]

    for name in sorted(figures, key=rank, reverse=True):
        found = figures[name]
        cells = [_estimate(found["auc"][main][group], interval=group == groups[0]) for group in groups]
        cells.append(_estimate(found["tpr_at_1pct"][main][groups[0]]))
        if "not_reproduced" in parts:
            cells.append(_estimate(found["auc"]["not_reproduced"][groups[0]]))
        table.add_row(name, *cells, f"{packet.methods[name]['cost']:g}")
    _wide().print(table)


def print_mitigation_bench(packet: "Packet") -> None:
    """One line per mitigation: copies that are left, what the pictures show of their captions, and what it takes."""
    counts, figures = packet.figures["counts"], packet.figures["mitigations"]
    images = counts["memorized"]
    # without a CLIP model there is no such figure
    fidelity = {"shown": "shown"} | ({"clip": "CLIP"} if "clip" in next(iter(figures.values())) else {})
    table = Table(
        title=f"{packet.about['model']}: {images['images']} images of {images['clusters']} memorized concepts",
        title_justify="left",
        caption="copies by pixels, by edges and by either; copies that a guard returns and pictures that it withholds; "
        "share of what the caption says that is to be seen"
        + ("; cosine of picture and caption by CLIP" if "clip" in fidelity else "")
        + "; evaluations of the network per image",
        caption_justify="left",
    )
    table.add_column("mitigation", no_wrap=True)
    for heading in ("pixels", "edges", "either", "returned", "withheld", *fidelity.values(), "evaluations"):
        table.add_column(heading, justify="right")
    for name, found in figures.items():
        copies = found["copies"]
        table.add_row(
            name,
            _estimate(copies["pixels"], interval=False),
            _estimate(copies["structure"], interval=False),
            _estimate(copies["either"]),
            _estimate(found["returned"], interval=False),
            _estimate(found["withheld"], interval=False),
            *(_estimate(found[key], interval=False) for key in fidelity),
            f"{found['evaluations']:.1f}",
        )
    for group, found in packet.figures["ordinary"].items():
        table.add_row(f"({group})", *[""] * 5, *(_estimate(found[key], interval=False) for key in fidelity), "")
    _wide().print(table)


def print_attack_bench(packet: "Packet") -> None:
    """Shares of planted captions of which attacks bring a copy back, by mitigation and by detector."""
    _print_attacks(
        "mitigation",
        packet.figures["attacks"],
        ("copies", "returned"),
        title=f"{packet.about['model']}: attacks on {packet.figures['counts']['concepts']} planted captions",
        caption="share of the captions of which the mitigation leaves a copy / of which a guard returns one; the "
        "number is the budget: steps of the search for an embedding, or wordings tried",
    )
    # older packets have no other detectors
    if "unseen" in packet.figures:
        _print_attacks(
            "detector",
            packet.figures["unseen"],
            ("alone", "beside"),
            title="copies that detectors do not flag, without a mitigation",
            caption="share of the captions of which there is a copy that the detector does not flag / that neither it "
            "nor the first detector flags, where each has half of the false-positive rate",
        )


def _print_attacks(
    what: str, attacks: dict[str, dict[str, dict[str, Any]]], shares: tuple[str, str], *, title: str, caption: str
) -> None:
    """One line per method with two shares for every attack and budget: attack → budget → method → share → estimate."""
    columns = {f"{attack} {budget}": found for attack, budgets in attacks.items() for budget, found in budgets.items()}
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column(what, no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right")
    for name in next(iter(columns.values())):
        cells = [" / ".join(_estimate(found[name][key]) for key in shares) for found in columns.values()]
        table.add_row(name, *cells)
    _wide().print(table)


def _none_reproduced(model: str, counts: dict[str, Any]) -> str:
    """What a bench says of which no positive counts."""
    images = counts.get("not_reproduced", {}).get("images", 0)
    return f"{model}: none of {images} images of planted captions reproduces the planted picture, so there is no figure"


def _wide() -> Console:
    """The terminal, or where there is none, one that is wide enough for the tables of a bench."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _estimate(value: dict[str, float] | None, *, interval: bool = False) -> str:
    """A figure of a bench, with its interval if that is asked for."""
    if value is None:
        return "–"
    return f"{value['value']:.3f}" + (f" ({value['low']:.3f}–{value['high']:.3f})" if interval else "")


def print_map_bench(packet: "MapPacket") -> None:
    """One line per localizer, the best first: IoU, and how much is marked where nothing is memorized."""
    from cryptomnesia.bench.figures import main_part

    counts, figures = packet.figures["counts"], packet.figures["localizers"]
    parts = next(iter(figures.values()))["iou"]
    if (main := main_part(parts)) is None:
        Console().print(_none_reproduced(packet.about["model"], counts))
        return
    kinds = [kind for kind in ("verbatim", "template", "object") if kind in parts]
    marked = next(iter(figures.values()))["marked"]
    groups = [group for group in ("ordinary", "fixed_pixels", "free") if group in marked]
    images = counts[main]
    table = Table(
        title=f"{packet.about['model']}: {main}, {images['images']} images of {images['clusters']} concepts; "
        f"everything marked: IoU {packet.figures['everything'][main]:.3f}",
        title_justify="left",
        caption="IoU at the threshold that 5% of the pixels of reference images exceed, and at the best one, which "
        "nobody knows beforehand; share of pixels above the first where nothing is memorized; evaluations of the "
        "network per image",
        caption_justify="left",
    )
    table.add_column("localizer", no_wrap=True)
    for heading in ("IoU", *kinds, "best", *(group.replace("_", " ") for group in groups), "evaluations"):
        table.add_column(heading, justify="right")

    def rank(name: str) -> float:
        value = figures[name]["iou"][main]
        return -1.0 if value is None else value["value"]

    for name in sorted(figures, key=rank, reverse=True):
        found = figures[name]
        best = found["oracle_iou"][main]
        table.add_row(
            name,
            *(_estimate(found["iou"][part]) for part in (main, *kinds)),
            "–" if best is None else f"{best:.3f}",
            *(_estimate(found["marked"][group]) for group in groups),
            f"{packet.methods[name]['cost']:g}",
        )
    _wide().print(table)
