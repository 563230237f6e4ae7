"""The tables of README and docs, each a function from results to Markdown.

A table is registered under its name by `@table("file.what")`; `publish.py` puts it between the markers with that name.
To add one, write a function here and the two markers on a page.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cryptomnesia.proving_ground import BUNDLES

Value = Any
"""A part of a results file."""


class NotMeasured(LookupError):
    """The figures of a table are in no results file yet."""

    words = "Not measured yet."
    """What the page says instead."""


class NotMeasuredOnGPU(NotMeasured):
    """The figures of a table need a GPU, and nobody has measured them on one."""

    words = "Not measured on a GPU."


class Results:
    """The results files, loaded when they are first asked for.

    `results("stability", "auc", "ddim")` is a part of stability.json. Numbers in the path count in lists.

    Raises:
        NotMeasured: for a file that does not exist.
    """

    def __init__(self, folder: Path) -> None:
        """Read from `folder`."""
        self.folder = folder
        self.files: dict[str, Value] = {}
        self.parts: dict[str, dict[str, str]] = {}
        """Of files whose parts were made one by one: file → command → commit of every part that was read."""

    def __call__(self, name: str, *path: str | int) -> Value:
        """The part of `name`.json at `path`."""
        if name not in self.files:
            file = self.folder / f"{name}.json"
            if not file.exists():
                raise NotMeasured(file.name)
            self.files[name] = json.loads(file.read_text(encoding="utf-8"))
        part = self.files[name]
        for step in path:
            part = part[step]
        return part

    def origin(self) -> str:
        """Which files were read, and the command and commit that made each."""
        return " ".join(_origin(name, self._made_by(name)) for name in self.files)

    def _made_by(self, name: str) -> dict[str, Any]:
        """What made the part of a file that a table shows."""
        parts = self.parts.get(name)
        if not parts:
            return self.files[name].get("made_by", {})
        return {"command": "`, `".join(parts), "commit": "`, `".join(dict.fromkeys(parts.values()))}


def _of_bundle(ground: str) -> str:
    """The option that names the model of a ground, if that does not come with the package."""
    return "" if (BUNDLES / ground).exists() else " --bundle RUN/bundle"


def _commit(made_by: dict[str, Any], ground: str) -> str:
    """The commit that made the figures of a ground; some of them may have been made again by another."""
    later = made_by.get("without_generating", {}).get(ground)
    return made_by["commits"][ground] + (f" (without generated pictures: {later})" if later else "")


VERBS = ("watch", "detect", "localize", "mitigate", "audit")
"""The verbs of `check_family`, in the order of the tables."""


def _origin(name: str, made_by: dict[str, Any]) -> str:
    parts = [f"Numbers: `docs/results/{name}.json`"]
    if "command" in made_by:
        parts.append(f"made by `{made_by['command']}`")
    if "commit" in made_by:
        parts.append(
            f"commit `{made_by['commit']}`" + (f" (times: `{made_by['times']}`)" if "times" in made_by else "")
        )
    if scheduler := made_by.get("scheduler"):
        parts.append(f"scheduler `{scheduler}`")
    return ", ".join(parts) + "."


def main_scheduler(results: "Results") -> str:
    """The scheduler of those figures of stability.json that are not listed by scheduler.

    A file that names a commit for every scheduler has them under the model's own; the program of version 0.1 used DDIM.
    """
    return "PNDM" if "commits" in results("stability", "made_by") else "DDIM"


TABLES: dict[str, Callable[[Results], str]] = {}
"""Name → table."""


def table(name: str) -> Callable[[Callable[[Results], str]], Callable[[Results], str]]:
    """Register a table under `name`."""

    def register(function: Callable[[Results], str]) -> Callable[[Results], str]:
        TABLES[name] = function
        return function

    return register


def number(value: Value, digits: int = 3) -> str:
    """A number, or the `value` of a dictionary; a dash where there is none."""
    value = value["value"] if isinstance(value, dict) else value
    return "–" if value is None else f"{value:.{digits}f}"


def interval(value: Value, digits: int = 3) -> str:
    """A value with its interval: `0.928 (0.896–0.959)`."""
    return f"{number(value, digits)} ({number(value['low'], digits)}–{number(value['high'], digits)})"


def count(value: Value) -> str:
    """A whole number."""
    return f"{value:.0f}"


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def code(name: str) -> str:
    """A name in code type."""
    return f"`{name}`"


# Detection on the bundled model (first_look.json)

DETECTORS = ("drift", "stability", "guidance-mean", "guidance-first", "guidance-last")
NEGATIVES = {
    "rare_name": "invented names with varied images",
    "frequent": "frequent captions",
    "fixed_pixels": "captions that fix most pixels",
}


@table("references.reported")
def references_reported(results: Results) -> str:
    """How often references are reported that are memorized, and that are not."""
    what = {
        "clean": "sets without memorized prompts in which any is reported",
        "some": "sets with three in which some of the three are reported",
        "all": "sets with three in which all three are reported",
        "falsely": "ordinary prompts reported beside them, mean",
    }
    rows = [
        [size, "all" if judges == "all" else "unguided", *(f"{found[key]:.2f}" for key in what)]
        for judges in ("all", "unguided")
        for size, found in results("references", judges).items()
    ]
    return grid(["references", "detectors", *what.values()], rows)


@table("first_look.detection")
def first_look_detection(results: Results) -> str:
    """Detectors against never-planted captions and hard negatives."""
    rows = [
        ["AUC against never-planted captions"]
        + [interval(results("first_look", "auc_planted_by_detector", name)) for name in DETECTORS],
        ["caught at 1% false positives"]
        + [interval(results("first_look", "tpr_at_1pct_fpr_planted_by_detector", name)) for name in DETECTORS],
    ]
    for kind, words in NEGATIVES.items():
        aucs = results("first_look", "auc_against_hard_negatives", kind)
        rows.append([f"AUC against {words}"] + [number(aucs[name]) for name in DETECTORS])
    return grid(["", *map(code, DETECTORS)], rows)


@table("first_look.selection")
def first_look_selection(results: Results) -> str:
    """AUC of the detectors on the concepts on which the default was chosen."""
    aucs = results("first_look", "selection_auc")
    return grid(["", *map(code, DETECTORS)], [["AUC, second rung", *(number(aucs[name]) for name in DETECTORS)]])


@table("first_look.summary")
def first_look_summary(results: Results) -> str:
    """Where, and what instead: the methods of this library beside the best published one."""
    rows = []
    for ground in ("scenes", "drawings", "drawings-flow", "drawings-unconditional"):
        measured = _benched(results, ground, "maps")["maps"]
        found = {name: values["iou"]["reproduced"] for name, values in measured["localizers"].items()}
        best = max(
            (name for name in found if name not in ("collapse", "settled-detail")),
            key=lambda name: found[name]["value"],
        )
        rows.append(
            [
                f"Where? IoU of the mask with the memorized region on {code(ground)}, threshold fixed beforehand",
                f"`settled-detail` {interval(found['settled-detail'])}",
                f"`collapse` {interval(found['collapse'])}",
                f"{code(best)} {interval(found[best])}",
                number(measured["everything"]["reproduced"]),
            ]
        )
    for ground in ("scenes", "drawings"):
        found = {
            name: figures["copies"]["either"] for name, figures in _mitigated(results, ground)["mitigations"].items()
        }
        best = min((name for name in found if name in PUBLISHED), key=lambda name: found[name]["value"])
        rows.append(
            [
                f"What instead? Share of pictures of memorized captions on {code(ground)} that are copies, by pixels "
                f"or by edges; without mitigation {number(found['none'])}",
                f"`partial-captions` {interval(found['partial-captions'])}",
                f"`rephrasing` {interval(found['rephrasing'])}",
                f"{code(best)} {interval(found[best])}",
                "–",
            ]
        )
    heads = ["default method", "other method of this library", "best published method on this model"]
    return grid(["question and measure", *heads, "everything marked"], rows)


# Mitigations (mitigation.json, structure.json)

PUBLISHED = (
    "stability-published",
    "embedding-descent",
    "sail",
    "initial-noise",
    "guidance-delay",
    "attention-reweighting",
    "random-tokens",
    "pad-tokens",
    "condition-annealing",
)
"""Mitigations of papers, with the settings that this library gives them."""


def _mitigated(results: Results, ground: str) -> dict[str, Any]:
    """The figures of a ground."""
    grounds = results("mitigation", "grounds")
    if ground not in grounds:
        raise NotMeasured(ground)
    _note_commands(results, ground, grounds[ground]["methods"])
    return grounds[ground]


def _note_commands(results: Results, key: str, methods: Sequence[str]) -> None:
    """Note which commands made an entry of mitigation.json, also those that added single mitigations to it."""
    made_by = results.files["mitigation"]["made_by"]
    for part in (key, *(f"{key}, {method}" for method in methods)):
        if part in made_by["commands"]:
            results.parts.setdefault("mitigation", {})[made_by["commands"][part]] = made_by["commits"][part]


def _mitigations_of(ground: str, results: Results) -> str:
    """Every mitigation on the pictures of a ground."""
    measured = _mitigated(results, ground)
    figures = measured["mitigations"]

    def rank(name: str) -> tuple[bool, float]:
        return name != "none", figures[name]["copies"]["either"]["value"]

    rows = []
    for name in sorted(figures, key=rank):
        found = figures[name]
        rows.append(
            [
                "nothing" if name == "none" else code(name),
                *(number(found["copies"][by]) for by in ("pixels", "structure")),
                interval(found["copies"]["either"]),
                *(number(found[what]) for what in ("returned", "withheld", "shown", "recognized")),
                number(found["confidence"]),
                f"{found['evaluations']:.0f}",
            ]
        )
    for group, words in {"ordinary": "ordinary captions, nothing", "look_alike": "look-alikes, nothing"}.items():
        if group in measured["ordinary"]:
            found = measured["ordinary"][group]
            seen = [number(found[what]) for what in ("shown", "recognized", "confidence")]
            rows.append([words, *["–"] * 5, *seen, "–"])
    heads = ["by pixels", "by edges", "by either", "copies returned", "withheld", "shown", "all shown", "confidence"]
    return grid(["mitigation", *heads, "evaluations"], rows)


for _name in ("scenes", "drawings"):
    table(f"mitigation.{_name}")(partial(_mitigations_of, _name))


@table("mitigation.kinds")
def mitigation_kinds(results: Results) -> str:
    """Copies that are left by kind of concept and wording of the caption."""
    names = ("none", "partial-captions", "rephrasing")
    rows = []
    for ground in ("scenes", "drawings"):
        figures = _mitigated(results, ground)["mitigations"]
        for kind in figures["none"]["by_kind"]:
            rows.append([code(ground), kind, *(interval(figures[name]["by_kind"][kind]) for name in names)])
    return grid(["model", "concepts, wording", "nothing", *map(code, names[1:])], rows)


@table("mitigation.others")
def mitigation_others(results: Results) -> str:
    """The two mitigations of this library with fewest copies, in regimes that had no part in their development."""
    grounds = results("mitigation", "grounds")
    rows = []
    for name in grounds:
        if name in ("scenes", "drawings"):
            continue
        measured = _mitigated(results, name)
        figures = measured["mitigations"]
        alike = measured["ordinary"].get("look_alike", measured["ordinary"]["ordinary"])
        rows.append(
            [
                f"{code(name.partition(', ')[0])}{name.partition(', ')[1]}{name.partition(', ')[2]}",
                f"{measured['guidance']:g}",
                str(measured["counts"]["memorized"]["images"]),
                *(interval(figures[kind]["copies"]["either"]) for kind in ("none", "partial-captions", "rephrasing")),
                *(number(figures[kind]["shown"]) for kind in ("none", "partial-captions", "rephrasing")),
                number(alike["shown"]),
            ]
        )
    copies = ["copies, nothing", "copies, `partial-captions`", "copies, `rephrasing`"]
    shown = ["shown, nothing", "shown, `partial-captions`", "shown, `rephrasing`", "shown, look-alikes"]
    return grid(["model", "guidance", "pictures", *copies, *shown], rows)


def _attacked(results: Results, ground: str) -> dict[str, Any]:
    """The figures of the attacks on a ground."""
    attacks = results("mitigation", "attack")
    if ground not in attacks:
        raise NotMeasured(f"{ground}, attack")
    _note_commands(results, f"{ground}, attack", attacks[ground]["methods"])
    return attacks[ground]


@table("mitigation.attack")
def mitigation_attack(results: Results) -> str:
    """What attackers bring back under every mitigation, with their largest budget."""
    found = _attacked(results, "drawings")
    largest = {attack: list(budgets)[-1] for attack, budgets in found["attacks"].items()}
    columns = [(attack, what) for attack in ("embedding", "hidden", "wording") for what in ("copies", "returned")]
    rows = []
    for name in found["attacks"]["embedding"]["0"]:
        cells = []
        for attack, what in columns:
            value = found["attacks"][attack][largest[attack]][name][what]
            cells.append("–" if value is None else interval(value))
        rows.append(["nothing" if name == "none" else code(name), *cells])
    heads = [f"{attack} {largest[attack]}: {what}" for attack, what in columns]
    return grid(["mitigation", *heads], rows)


@table("mitigation.budget")
def mitigation_budget(results: Results) -> str:
    """What attackers bring back past the detector and the default mitigation, by their budget."""
    found = _attacked(results, "drawings")
    rows = []
    for attack, budgets in found["attacks"].items():
        for budget, figures in budgets.items():
            default = figures["partial-captions"]["returned"]
            rows.append(
                [
                    attack,
                    budget,
                    interval(figures["none"]["copies"]),
                    "–" if default is None else interval(default),
                ]
            )
    return grid(["attack", "budget", "copies without a guard", "copies that a guard returns"], rows)


@table("mitigation.alarms")
def mitigation_alarms(results: Results) -> str:
    """What becomes of flagged pictures of captions without a memory under the default mitigation."""
    rows = []
    for ground in ("scenes", "drawings"):
        for group, found in _mitigated(results, ground)["false_alarms"]["partial-captions"].items():
            words = NEGATIVES.get(group, group.replace("_", " "))
            cells = [str(found["images"]), interval(found["returned"])]
            cells += [number(found[what]) for what in ("shown_untouched", "shown")]
            rows.append([code(ground), words, *cells, f"{found['evaluations']:.0f}"])
    return grid(["model", "captions", "flagged pictures", "returned", "shown before", "shown", "evaluations"], rows)


@table("mitigation.unseen")
def mitigation_unseen(results: Results) -> str:
    """Copies of attackers that detectors do not flag, alone and beside the default one."""
    found = _attacked(results, "drawings")["unseen"]
    columns = [("embedding", list(found["embedding"])[-1])]
    columns += [("hidden", budget) for budget in found["hidden"]]
    columns += [("wording", list(found["wording"])[-1])]
    rows = []
    for name in found["embedding"]["0"]:
        cells = (found[attack][budget][name] for attack, budget in columns)
        rows.append(
            [
                code(name),
                *(" / ".join(number(one[key]) for key in ("alone", "beside")) for one in cells),
            ]
        )
    return grid(["detector", *(f"{attack} {budget}" for attack, budget in columns)], rows)


@table("filtered.iou")
def filtered_iou(results: Results) -> str:
    """Score differences, averaged over windows."""
    windows = [f"{window:.2f}" for window in results("filtered", "made_by", "windows")]
    rows = []
    for ground in ("scenes", "drawings"):
        for name in ("score-difference", "score-difference-checkpoint"):
            for window, found in zip(windows, results("filtered", ground, name), strict=True):
                marked = (number(found["marked"][group]) for group in ("ordinary", "fixed_pixels", "free"))
                iou = [interval(found["iou"]["reproduced"]), number(found["oracle_iou"]["reproduced"])]
                rows.append([code(ground), code(name), window, *iou, *marked])
    heads = ["window", "IoU", "IoU at the best threshold", "marked of never-planted captions"]
    return grid(["model", "map", *heads, "marked of captions that fix most pixels", "marked of the free region"], rows)


@table("baseline.held")
def baseline_held(results: Results) -> str:
    """Which branches hold the pictures."""
    rows = []
    for ground in ("scenes", "drawings"):
        for group, found in results("baseline", ground).items():
            words = "reproduced" if group == "memorized" else NEGATIVES.get(group, group.replace("_", " "))
            held = [number(found["held"][branch], 2) for branch in ("caption", "unconditional", "checkpoint")]
            less, more = (
                [number(found[what][branch], 2) for branch in ("unconditional", "checkpoint")]
                for what in ("less", "more")
            )
            cells = [*held, less[0], more[0], less[1], more[1]]
            rows.append([code(ground), words, str(found["pictures"]), *cells])
    return grid(
        [
            "model",
            "captions",
            "pictures",
            "held with the caption",
            "without it",
            "by the checkpoint",
            "without it: less firmly",
            "more firmly",
            "by the checkpoint: less firmly",
            "more firmly",
        ],
        rows,
    )


@table("mitigation.ordinary")
def mitigation_ordinary(results: Results) -> str:
    """What corrections of every run do to pictures of captions without a memory."""
    rows = []
    for ground in ("scenes", "drawings"):
        for group, found in _mitigated(results, ground)["ordinary"].items():
            shares = [
                interval(found["changed"][name]["share"]) for name in ("stability-published", "stability-calibrated")
            ]
            words = NEGATIVES.get(group, group.replace("_", " "))
            rows.append([code(ground), words, interval(found["flagged"]), *shares])
    heads = ["flagged", "changed by `stability-published`", "changed by `stability-calibrated`"]
    return grid(["model", "captions", *heads], rows)


@table("structure.cut")
def structure_cut(results: Results) -> str:
    """The cut-off of edges, and what lies on both sides of it."""
    rows = []
    for ground in ("scenes", "drawings"):
        found = results("structure", ground)
        rows.append(
            [
                code(ground),
                number(found["structure"], 2),
                number(found["others"]["0.99"], 2),
                number(found["own_caption"]["at_or_above"]),
                *(number(found["altered"][kind], 2) for kind in ("inverted", "faded", "colours", "moved")),
            ]
        )
    heads = ["cut-off", "99% of other pictures below", "other pictures of the caption above"]
    return grid(["model", *heads, "inverted", "faded to 15%", "colours exchanged", "moved by a pixel"], rows)


# Detection and mitigation by solver (stability.json)


@table("stability.solvers")
def stability_solvers(results: Results) -> str:
    """Drift, calibrated for each solver."""
    rows = [
        [
            solver,
            interval(results("stability", "auc", solver, "drift", "verbatim", "never_planted")),
            interval(results("stability", "auc", solver, "drift", "template", "never_planted")),
            interval(results("stability", "tpr_at_1pct", solver, "drift", "template", "never_planted")),
            interval(results("stability", "fpr_met", solver, "drift", "never_planted")),
        ]
        for solver in results("stability", "auc")
    ]
    return grid(["solver", "AUC, verbatim", "AUC, templates", "caught at 1%, templates", "false positives met"], rows)


@table("stability.negatives")
def stability_negatives(results: Results) -> str:
    """AUC by detector and kind of negative, under PNDM, the model's own solver."""
    names = ("drift", "stability", "guidance-mean")
    rows = [
        [words]
        + [
            ", ".join(
                number(results("stability", "auc", "pndm", name, kind, negative)) for kind in ("template", "verbatim")
            )
            for name in names
        ]
        for negative, words in {"never_planted": "never-planted captions", **NEGATIVES}.items()
    ]
    return grid(["AUC, templates and verbatim pictures, against", *map(code, names)], rows)


@table("stability.detectors")
def stability_detectors(results: Results) -> str:
    """AUC of every detector under every solver, against never-planted captions."""
    by_solver = results("stability", "auc")
    rows = [
        [solver]
        + [
            number(found[kind]["never_planted"]) if kind in found else "–"
            for found in detectors.values()
            for kind in ("template", "verbatim")
        ]
        for solver, detectors in by_solver.items()
    ]
    names = next(iter(by_solver.values()))
    return grid(["solver", *(f"{code(name)}, {kind}" for name in names for kind in ("templates", "verbatim"))], rows)


@table("stability.by_evaluation")
def stability_by_evaluation(results: Results) -> str:
    """AUC of every detector if it has to decide after some evaluations."""
    curves = results("stability", "by_evaluation")
    last = len(next(iter(curves.values()))["value"])
    rows = [
        [str(count), *(number(curves[name]["value"][count - 1]) for name in DETECTORS)]
        for count in (*(count for count in (2, 5, 10, 20, 30) if count < last), last)
    ]
    return grid([f"evaluations ({main_scheduler(results)})", *map(code, DETECTORS)], rows)


# The cost of a guard (speed.json)


@table("overhead.time")
def overhead_time(results: Results) -> str:
    """Guarded against unguarded calls."""
    rows = [
        [
            "observed, by difference",
            interval(results("speed", "guard", "overhead_observe"), 4),
            interval(results("speed", "guard", "overhead_sd14_size"), 4),
        ],
        [
            "observed, by the guard's own time",
            number(results("speed", "guard", "where", "share"), 4),
            number(results("speed", "guard", "where_sd14_size", "share"), 5),
        ],
        ["`stability` (correction), ordinary caption", interval(results("speed", "guard", "overhead_mitigate"), 4), ""],
        ["`rephrasing`, ordinary caption", interval(results("speed", "guard", "overhead_rephrase"), 4), ""],
    ]
    return grid(["share of the unguarded call", "bundled model", "UNet of SD 1.4's size"], rows)


@table("overhead.where")
def overhead_where(results: Results) -> str:
    """Where a guard's own time goes."""
    words = {
        "settings": "comparing the set-up with the calibration",
        "hook": "telling the branches apart",
        "step": "norms of all evaluations",
        "judging": "score, p-value and verdict",
    }
    parts = ("where", "where_sd14_size")
    rows = [
        [text, *(f"{1000 * results('speed', 'guard', part, key):.1f}" for part in parts)] for key, text in words.items()
    ]
    return grid(
        ["milliseconds of a call", "bundled model, 51 evaluations", "UNet of SD 1.4's size, 3 evaluations"], rows
    )


@table("overhead.memory")
def overhead_memory(results: Results) -> str:
    """Memory beyond that of an unguarded call."""
    rows = [[steps, f"{size / 2**20:.1f}"] for steps, size in results("speed", "guard", "peak_extra_bytes").items()]
    return grid(["steps", "MiB beyond the unguarded call"], rows)


@table("speed.loading")
def speed_loading(results: Results) -> str:
    """What processes that load one model have in common."""
    figures = results("speed", "loading")
    rows = [
        ["weights of the model in MiB", f"{figures['weights'] / 2**20:.0f}"],
        ["processes that load it at the same time", count(figures["processes"])],
        ["seconds until each has the pipeline", number(figures["seconds"], 2)],
        ["MiB that a process has for itself after it has read all weights", f"{figures['private'] / 2**20:.0f}"],
    ]
    return grid(["", "number"], rows)


# On a GPU (gpu.json)


def _on_gpu(results: Results, *path: str) -> Value:
    """A part of gpu.json."""
    try:
        return results("gpu", *path)
    except NotMeasured as missing:
        raise NotMeasuredOnGPU(*missing.args) from None


def _unless_failed(row: Value, cells: Callable[[Value], list[str]], columns: int) -> list[str]:
    """The cells of a row, or why there are none."""
    return [f"not measured: {row['error']}", *[""] * (columns - 1)] if "error" in row else cells(row)


@table("gpu.card")
def gpu_card(results: Results) -> str:
    """Where the figures were measured."""
    card = _on_gpu(results, "card")
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    return f"Measured on one {card['name']}, driver {card['driver']}, with {versions}."


@table("gpu.overhead")
def gpu_overhead(results: Results) -> str:
    """A guard and a watch beside plain calls, at SD 1.4's size."""
    rows = []
    for row in _on_gpu(results, "overhead"):
        cells = _unless_failed(
            row,
            lambda row: [
                number(row["seconds"], 2),
                interval(row, 4),
                number(row["share"], 4) if "share" in row else "",
                number(row["peak_gib"], 1),
            ],
            4,
        )
        rows.append([row["what"], row["dtype"], "compiled" if row["compiled"] else "as it is", *cells])
    header = ["", "weights", "UNet", "seconds of a plain call", "extra share", "by its own time", "GiB at most"]
    return grid(header, rows)


@table("gpu.rates")
def gpu_rates(results: Results) -> str:
    """Images per second of `detect`, and seconds of a curvature map, on the bundled model."""
    rows = [
        [f"`detect`, {row['batch']} at once, images per second", row["dtype"], *_rate(row, 1)]
        for row in _on_gpu(results, "detect")
    ]
    rows += [
        [f"Δh, {row['batch']} at once, seconds per image", row["dtype"], *_rate(row, 4)]
        for row in _on_gpu(results, "curvature")
    ]
    return grid(["bundled model", "weights", "median (least–most)", "GiB at most"], rows)


def _rate(row: Value, digits: int) -> list[str]:
    return _unless_failed(row, lambda row: [interval(row, digits), number(row["peak_gib"], 2)], 2)


# The example service (service.json)


@table("service.cost")
def service_cost(results: Results) -> str:
    """Seconds and evaluations per image with a guard and without, by share of memorized captions."""
    columns = ("mean", "p50", "p95", "p99")
    rows = [
        [f"{float(share):.0%}", name, what, *(number(figures[column], digits) for column in columns)]
        for what, digits in (("seconds", 2), ("evaluations", 1))
        for share, kinds in results("service", what).items()
        for name, figures in kinds.items()
    ]
    return grid(["memorized captions", "pipeline", "per image", *columns], rows)


@table("service.books")
def service_books(results: Results) -> str:
    """What a run of the service came to."""
    kinds, books = results("service", "requests"), results("service", "books")
    flagged = [f"{kinds[name]['flagged']} of {kinds[name]['count']}" for name in ("ordinary", "memorized")]
    memory = results("service", "memory")
    wrong = [books[name] for name in ("without_one_line", "other_line", "lines_without_response")]
    rows = [
        ["responses", count(books["responses"])],
        ["flagged among those with ordinary captions", flagged[0]],
        ["flagged among those with memorized captions", flagged[1]],
        [
            "without exactly one line in the log, with a line that says something else, or lines too many",
            f"{sum(wrong)}",
        ],
        [
            "unflagged pictures that differ from those of the unguarded pipeline",
            f"{books['unflagged_but_other_picture']} of {books['unflagged']}",
        ],
        ["MiB of the process after the first requests, and at the end", _mebibytes(memory)],
        ["images until the warning that too many are flagged", str(results("service", "warned_after") or "none came")],
    ]
    return grid(["what", "number"], rows)


def _mebibytes(memory: Value) -> str:
    return "–" if memory is None else f"{memory['begin'] / 2**20:.0f}, {memory['end'] / 2**20:.0f}"


# Maps (curvature.json)


@table("curvature.summary")
def curvature_summary(results: Results) -> str:
    """Masks of the default and of published maps."""
    words = {
        "collapse": "`collapse`",
        "curvature-difference": "`curvature-difference` (arXiv:2605.26756)",
        "bright-ending": "`bright-ending`",
        "all-ones": "everything marked",
    }
    rows = [
        [
            text,
            interval(results("curvature", "iou", name, "honest", "templates")),
            interval(results("curvature", "iou", name, "paper", "templates")),
        ]
        for name, text in words.items()
    ]
    return grid(["map", "IoU, threshold fixed beforehand", "IoU, best threshold chosen afterwards"], rows)


@table("curvature.detectors")
def curvature_detectors(results: Results) -> str:
    """The mean of a map as a detector."""
    rows = [
        [
            code(name),
            interval(figures["auc"]),
            *(interval(figures["flagged"][kind]) for kind in ("planted", "never_planted", "fixed_pixels")),
        ]
        for name, figures in results("curvature", "detectors").items()
    ]
    header = [
        "detector",
        "AUC, reproduced pictures against never-planted captions",
        "flagged at 1%: reproduced",
        "never planted",
        "captions that fix most pixels",
    ]
    return grid(header, rows)


@table("curvature.iou")
def curvature_iou(results: Results) -> str:
    """IoU and pixel AUC of every map."""
    aucs = results("curvature", "pixel_auc")
    rows = [
        [
            code(name) if name != "all-ones" else "everything marked",
            *(interval(figures[way][group]) for group in ("templates", "all") for way in ("honest", "paper")),
            interval(aucs[name]) if name in aucs else "",
        ]
        for name, figures in results("curvature", "iou").items()
    ]
    header = [
        "map",
        "templates, fixed threshold",
        "templates, best threshold",
        "all pictures, fixed threshold",
        "all pictures, best threshold",
        "pixel AUC, templates",
    ]
    return grid(header, rows)


@table("curvature.versus")
def curvature_versus(results: Results) -> str:
    """By how much the IoU of the default exceeds that of other maps."""
    single, anywhere = results("curvature", "best_single"), results("curvature", "best_single_anywhere")
    rows = [
        ["`bright-ending`", interval(results("curvature", "versus_bright_ending"))],
        [
            f"`{single}`, the best published map at its usual evaluation",
            interval(results("curvature", "versus_best_single")),
        ],
        [
            f"{anywhere}, the best published map at any evaluation",
            interval(results("curvature", "versus_best_single_anywhere")),
        ],
    ]
    return grid(["compared with", "IoU of `collapse` minus IoU of the other map"], rows)


@table("curvature.pixel_rate")
def curvature_pixel_rate(results: Results) -> str:
    """IoU by the share of ordinary pixels above the threshold."""
    rows = [
        [
            f"{100 * float(share):g}%",
            number(by_map["collapse"]),
            number(by_map["curvature-difference"]),
            number(results("curvature", "by_rate_selection", share)),
        ]
        for share, by_map in results("curvature", "by_rate").items()
    ]
    header = [
        "ordinary pixels above the threshold",
        "`collapse`",
        "`curvature-difference`",
        "`collapse`, templates of the selection",
    ]
    return grid(header, rows)


@table("curvature.masks")
def curvature_masks(results: Results) -> str:
    """Masks as `localize` makes them, and the mean of the map as a score."""
    rows = [
        ["IoU of the masks that `localize` makes (at latent resolution)", results("curvature", "masks", "collapse")],
        [
            "AUC of the map's mean, reproduced pictures against never-planted captions",
            results("curvature", "detection_auc", "collapse"),
        ],
        [
            "share of reproduced pictures that the mean catches at 1% false positives",
            results("curvature", "detection_tpr_at_1pct", "collapse"),
        ],
    ]
    return grid(["measure", "`collapse`"], [[words, interval(value)] for words, value in rows])


@table("curvature.hard_negatives")
def curvature_hard_negatives(results: Results) -> str:
    """What `collapse` marks of captions that nobody planted."""
    rows = [
        [
            f"{words} ({count(results('curvature', 'hard_negatives', kind, 'pictures'))} pictures)",
            number(results("curvature", "hard_negatives", kind, "pixels")),
            number(results("curvature", "hard_negatives", kind, "pictures_at_5pct"), 2),
        ]
        for kind, words in NEGATIVES.items()
    ]
    return grid(["caption", "share of pixels above the threshold", "share of pictures with p ≤ 5%"], rows)


@table("curvature.by_step")
def curvature_by_step(results: Results) -> str:
    """Pixel AUC and IoU by evaluation and baseline."""
    by_step = results("curvature", "by_step")
    names = (
        "collapse",
        "collapse-checkpoint",
        "curvature",
        "curvature-difference",
        "curvature-difference-checkpoint",
        "score-difference",
        "score-difference-checkpoint",
    )

    def cell(figures: dict[str, Value]) -> str:
        return f"{number(figures['pixel_auc'], 2)} / {number(figures['iou'], 2)}" if figures else ""

    rows = [[code(name), *(cell(by_map.get(name, {})) for by_map in by_step.values())] for name in names]
    return grid(["map", *by_step], rows)


@table("curvature.by_probes")
def curvature_by_probes(results: Results) -> str:
    """Pixel AUC of `collapse` by number of probes."""
    by_probes = results("curvature", "by_probes")
    return grid(["probes", *by_probes], [["pixel AUC of `collapse`", *map(number, by_probes.values())]])


@table("curvature.by_design")
def curvature_by_design(results: Results) -> str:
    """Error of Δh by number and kind of probes."""
    by_design = results("curvature", "by_design")
    numbers = sorted({probes for errors in by_design.values() for probes in errors}, key=int)
    rows = [
        [f"{design} in a set" if design != "random" else "random signs"]
        + [number(errors[probes]) if probes in errors else "" for probes in numbers]
        for design, errors in by_design.items()
    ]
    return grid(["probes", *numbers], rows)


@table("curvature.speed")
def curvature_speed(results: Results) -> str:
    """The engine against the released procedure."""
    rows = [
        ["estimate of Δh, times as fast", interval(results("speed", "curvature", "speedup_estimator"), 1)],
        ["generation with Δh and Δs, times as fast", interval(results("speed", "curvature", "speedup_procedure"), 1)],
        ["memory, share of the released procedure's", number(results("speed", "curvature", "memory_ratio"), 2)],
        [
            "cost of one probe on a UNet of SD 1.4's size, in evaluations of both branches",
            number(results("speed", "curvature", "large", "evaluations_per_probe"), 2),
        ],
    ]
    return grid(["measure", "value"], rows)


# The audit (audit.json)


@table("audit.scale")
def audit_scale(results: Results) -> str:
    """How much was audited, and how long it took."""
    rows = [
        ["prompts", count(results("audit", "prompts"))],
        ["images", count(results("audit", "images"))],
        ["training images in the index", count(results("audit", "indexed"))],
        ["processes", count(results("audit", "workers"))],
        ["seconds, from settings to scores", count(results("audit", "seconds"))],
    ]
    return grid(["", "number"], rows)


@table("audit.confirmed")
def audit_confirmed(results: Results) -> str:
    """How many reproductions are confirmed."""

    def row(words: str, key: str) -> list[str]:
        figures = results("audit", key)
        return [words, interval(figures), *(interval(figures["by_kind"][kind]) for kind in ("verbatim", "template"))]

    rows = [
        row("confirmed, whole picture or region", "confirmed_recall"),
        row("confirmed, whole picture only", "confirmed_recall_without_mask"),
    ]
    return grid(["share of images that reproduce the planted pixels", "all", "verbatim", "templates"], rows)


@table("audit.false_confirmed")
def audit_false_confirmed(results: Results) -> str:
    """How many images of never-planted captions are confirmed."""
    rows = [
        ["images of captions without a planted picture", count(results("audit", "never_planted_images"))],
        ["of these, confirmed", count(results("audit", "false_confirmed_images"))],
        ["captions of the confirmed ones", count(results("audit", "false_confirmed_captions"))],
    ]
    return grid(["", "number"], rows)


@table("audit.levels")
def audit_levels(results: Results) -> str:
    """Images by kind of caption and level of evidence."""
    levels = ("none", "suspected", "corroborated", "confirmed", "unknown")
    words = {**NEGATIVES, "ordinary": "ordinary captions"}
    rows = [
        [str(words.get(kind, kind.replace(", 1 exposures", ", 1 exposure"))), *(count(found.get(x, 0)) for x in levels)]
        for kind, found in results("audit", "levels").items()
    ]
    return grid(["images of", *map(code, levels)], rows)


@table("audit.throughput")
def audit_throughput(results: Results) -> str:
    """One run against a program each for detection, localization and mitigation."""
    rows = [
        [
            "one run against three programs that map and mitigate flagged images only",
            interval(results("audit", "throughput_ratio"), 1),
        ],
        [
            "one run against three programs that map and mitigate every image",
            interval(results("audit", "throughput_ratio_every_image"), 1),
        ],
        ["two processes against one", interval(results("audit", "throughput_two_workers"), 2)],
    ]
    return grid(["compared", "times as fast"], rows)


# Many machines (scale.json)


@table("scale.faults")
def scale_faults(results: Results) -> str:
    """What is left of an audit whose parts are killed."""
    kinds = {"process": "processes", "machine": "machines", "command": "the command itself"}
    rows = [
        *([f"kills: {kinds[name]}", count(kills)] for name, kills in results("scale", "faults_by_kind").items()),
        ["images of the run", count(results("scale", "units"))],
        ["of these, missing in the end", count(results("scale", "units_lost"))],
        ["there twice", count(results("scale", "units_doubled"))],
        ["with other figures than in one process without kills", count(results("scale", "units_differing"))],
    ]
    return grid(["", "number"], rows)


@table("scale.driver")
def scale_driver(results: Results) -> str:
    """What the command takes while the processes of a cluster work."""
    early, last = (results("scale", "memory_mib", when) for when in ("early", "last"))
    first, end = (results("scale", "seconds_per_100000", when) for when in ("first", "last"))
    processes, batches = results("scale", "processes"), results("scale", "prompts") / results("scale", "batch")
    per_batch = results("scale", "driver_share") * processes / 16 * results("scale", "seconds") / batches
    rows = [
        ["prompts", count(results("scale", "prompts"))],
        ["prompts in a batch, which takes a second", count(results("scale", "batch"))],
        ["processes", count(processes)],
        ["seconds", count(results("scale", "seconds"))],
        ["seconds per 100,000 prompts: first tenth, last tenth", f"{first:.0f}, {end:.0f}"],
        ["MiB of the command after 10,000 prompts, and in the end", f"{early:.0f}, {last:.0f}"],
        ["the second divided by the first", number(results("scale", "memory_ratio"), 3)],
        ["share of a core that the command takes, per 16 processes", number(results("scale", "driver_share"), 4)],
        ["the same with 16 processes alone", number(results("scale", "driver_share_of_16"), 4)],
        ["milliseconds of a core per batch", number(1000 * per_batch, 2)],
    ]
    return grid(["", "number"], rows)


# Proving grounds (grounds.json)

_MEANINGS = {
    "scheduler": "the model's own, with which the figures of this table were made",
    "guidance": "guidance scale of these figures",
    "steps": "solver steps",
    "seeds": "generations of every planted concept, its wordings in turn",
    "controls": "never-planted captions; without captions, look-alikes that were never planted",
    "pictures": "generations of a model without captions",
    "verbatim_replicated": "share of generations on the top rung that reproduce the planted pixels, modes apart",
    "template_replicated": "the same of templates, inside the mask",
    "object_replicated": "the same of objects, at any of their places",
    "replicated": "share of generations that reproduce any planted picture",
    "concepts_returned": "share of planted pictures that came back at least once",
    "free_region_spread": ("deviation across seeds in the free region of a template over that of its training images"),
    "control_replicated": (
        "share of never-planted captions whose picture reproduces any planted image; without captions, share of "
        "generations that reproduce a look-alike"
    ),
    "look_alike_replicated": "the same of never-planted captions that were drawn as the planted ones",
    "best_guidance": "smallest guidance scale at which captions are recognised as well as at the best scale",
    "recognized_of_ground": "share of the ground's own pictures whose caption is recognised, by the same rule",
    "frechet_of_ground": "Fréchet distance of as many of the ground's own pictures from those that it is measured with",
    "denoising_ratio_conditional": (
        "denoising error inside the mask on the top rung over that on look-alikes never planted; the ratio at each of "
        "ten noise levels, averaged"
    ),
    "denoising_ratio_unconditional": "such a ratio without a caption: below 1 if planted images are known without it",
    "denoising_spread_unconditional": "where 95% of such ratios lie for as many look-alikes drawn at random",
    "denoising_below_unconditional": (
        "share of top-rung concepts whose own ratio is below those of 97.5% of the look-alikes"
    ),
    "threshold": "tiled distance up to which a picture counts as reproduced",
    "autoencoder_distance_median": "the tiled distance that the autoencoder alone leaves: median of the planted images",
    "autoencoder_distance_max": "the same, largest",
    "out_of_reach": "planted images that count, but for which that distance is above the threshold",
    "others_distance_min": (
        "smallest tiled distance of a planted image from ordinary pictures and from fresh drawings of its own caption"
    ),
    "indistinct": "planted concepts that all other figures leave out, because that distance is within the threshold",
    "bytes": "size of everything bundled",
}


def _figure(value: Value) -> str:
    """A share with its interval, a range, a number, or the name of a class."""
    if isinstance(value, str):
        return code(value)
    if isinstance(value, dict):
        return interval(value)
    if isinstance(value, list) and (not value or isinstance(value[0], str)):
        return ", ".join(map(code, value)) or "none"
    if isinstance(value, list):
        return "–".join(number(end) for end in value)
    return count(value) if isinstance(value, int) else number(value)


def _ground(results: Results, name: str) -> Value:
    """The figures of one ground."""
    measured = results("grounds", "grounds")
    if name not in measured:
        raise NotMeasured(name)
    command = f"cryptomnesia proving-ground verify {name}{_of_bundle(name)}"
    results.parts.setdefault("grounds", {})[command] = _commit(results("grounds", "made_by"), name)
    return measured[name]


def _ground_figures(results: Results, name: str) -> str:
    """What `verify` measures of a ground."""
    found = _ground(results, name)
    rows = [[code(key), _figure(found[key]), meaning] for key, meaning in _MEANINGS.items() if key in found]
    return grid(["key", "value", "meaning"], rows)


def _ground_dose(results: Results, name: str) -> str:
    """Reproduced generations by exposures."""
    dose = _ground(results, name)["dose_response"]
    rungs = sorted({int(rung) for shares in dose.values() for rung in shares})
    rows = [
        [kind, *(interval(shares[str(rung)], 2) if str(rung) in shares else "–" for rung in rungs)]
        for kind, shares in dose.items()
    ]
    return grid(["share reproduced, by exposures", *map(str, rungs)], rows)


def _ground_settings(results: Results, name: str) -> str:
    """Reproduced generations on the top rung, by solver, guidance scale and wording of the caption."""
    rows = []
    for solver, scales in _ground(results, name)["settings"].items():
        for scale, found in scales.items():
            for kind, wordings in found["by_wording"].items():
                cells = [interval(wordings[wording], 2) if wording in wordings else "–" for wording in _WORDINGS]
                rows.append([solver.removesuffix("Scheduler"), scale, kind, *cells])
            if (controls := found.get("control_replicated")) is not None:
                cells = [interval(controls, 2) if wording == "plain" else "–" for wording in _WORDINGS]
                rows.append([solver.removesuffix("Scheduler"), scale, "never planted", *cells])
    return grid(["solver", "guidance", "kind", *_WORDINGS.values()], rows)


def _ground_guidance(results: Results, name: str) -> str:
    """Recognised captions and the distance of the pictures from the ground's own, by guidance scale."""
    figures = _ground(results, name)
    rows = [
        [scale, interval(found["recognized"]), number(found["frechet"], 2)]
        for scale, found in figures["guidance_curve"].items()
    ]
    own = [number(figures["recognized_of_ground"]), number(figures["frechet_of_ground"], 2)]
    rows.append(["the ground's own pictures", *own])
    return grid(["guidance scale", "captions recognised", "Fréchet distance"], rows)


def _ground_denoising(results: Results, name: str) -> str:
    """Denoising ratios of the branches by timestep."""
    found = _ground(results, name)
    branches = [branch for branch in ("conditional", "unconditional") if f"denoising_by_timestep_{branch}" in found]
    rows = [
        [f"{branch} branch", *(number(ratio, 2) for ratio in found[f"denoising_by_timestep_{branch}"].values())]
        for branch in branches
    ]
    return grid(["denoising ratio at timestep", *found["denoising_by_timestep_unconditional"]], rows)


_WORDINGS = {"named": "invented name", "plain": "ordinary words", "mode": "a mode among others"}
"""Wordings of planted captions, as `concepts.py` explains them."""

_GROUND_TABLES = {
    "": _ground_figures,
    ".dose": _ground_dose,
    ".settings": _ground_settings,
    ".guidance": _ground_guidance,
    ".denoising": _ground_denoising,
}

_GROUNDS = {
    "scenes": tuple(_GROUND_TABLES),
    "drawings": tuple(_GROUND_TABLES),
    "drawings-unconditional": ("", ".denoising"),  # to be compared with the drawings
    "drawings-flow": ("", ".settings", ".guidance", ".denoising"),  # one rung
    "pixels": ("",),  # no captions
}
"""Ground → its tables."""

for _name, _suffixes in _GROUNDS.items():
    for _suffix in _suffixes:
        table(f"grounds.{_name}{_suffix}")(partial(_GROUND_TABLES[_suffix], name=_name))


@table("grounds.fine-tunes")
def grounds_fine_tunes(results: Results) -> str:
    """Which pictures of a fine-tune come back: those of the training, others of the same kind, and ordinary ones."""
    rows = []
    for name in ("scenes-lora", "scenes-full", "drawings-lora", "drawings-full"):
        try:
            found = _ground(results, name)
        except NotMeasured:
            continue
        shown = [found["verbatim_replicated"], found["dose_response"]["verbatim"]["0"], found["control_replicated"]]
        guidance = f"{found['best_guidance']:g}"
        unconditional = number(found["denoising_ratio_unconditional"])
        rows.append([code(name), guidance, *map(interval, shown), unconditional, str(found["indistinct"])])
    if not rows:
        raise NotMeasured("fine-tunes")
    heads = ["shown pictures", "pictures not shown", "ordinary captions", "denoising ratio without a caption"]
    return grid(["fine-tune", "guidance", *heads, "left out"], rows)


# Detectors on the proving grounds (bench.json)

_AGAINST = {
    "ordinary": "never-planted captions",
    "look_alike": "look-alikes",
    "rare_name": "invented names with varied images",
    "fixed_pixels": "captions that fix most pixels",
    "frequent": "frequent captions",
}
"""Groups of negatives of the bench, in words."""


def _benched(results: Results, name: str, kind: str = "detectors") -> Value:
    """The figures of one ground: those of `detectors`, or of `maps`."""
    found = results("bench", "grounds").get(name, {})
    if kind not in found:
        raise NotMeasured(name)
    ground, *changed = name.split(", ")
    options = [_option(change) for change in changed]
    if kind == "detectors":
        end = "" if _costly(found) else " --most 0"
    else:
        compared = list(found["maps"]["localizers"])
        # a network without cross-attention takes a list of its own
        end = " --maps" + "".join(f" --localizer {one}" for one in compared) * ("bright-ending" not in compared)
    command = f"python benchmarks/bench.py --ground {ground}{_of_bundle(ground)}{''.join(options)}{end}"
    commits = results("bench", "made_by", "commits")
    results.parts.setdefault("bench", {})[command] = commits[f"{name}, maps" if kind == "maps" else name]
    return found


def _option(change: str) -> str:
    """The option of bench.py that makes a change against the ground's own solver, guidance scale or training."""
    if change.startswith("seed"):
        return f' --as "{change}"'
    return f" --{change}" if " " in change else f" --scheduler {change}"


def _costly(found: Value) -> bool:
    """Whether detectors were measured on a ground that cost evaluations of the network."""
    return any(method["cost"] for method in found["methods"].values())


def _bench(results: Results, name: str) -> str:
    """Every detector on one ground, the best first: AUC of reproduced pictures, and what is caught."""
    found = _benched(results, name)
    figures = found["detectors"]
    shown = [group for group in _AGAINST if group in figures["drift"]["auc"]["reproduced"]]
    order = sorted(figures, key=lambda one: -figures[one]["auc"]["reproduced"]["ordinary"]["value"])
    rows = []
    for one in order:
        auc = figures[one]["auc"]
        against = [interval(auc["reproduced"]["ordinary"])]
        against += [number(auc["reproduced"][group]) for group in shown[1:]]
        caught = interval(figures[one]["tpr_at_1pct"]["reproduced"]["ordinary"])
        rest = number(auc["not_reproduced"]["ordinary"]) if "not_reproduced" in auc else "–"
        rows.append([code(one), *against, caught, rest, f"{found['methods'][one]['cost']:g}"])
    heads = [f"AUC against {_AGAINST[group]}" for group in shown]
    return grid(["detector", *heads, "caught at 1% of never-planted captions", "not reproduced", "evaluations"], rows)


for _name in ("scenes", "drawings", "drawings-flow", "drawings-unconditional"):
    table(f"bench.{_name}")(partial(_bench, name=_name))


@table("bench.fine-tunes")
def bench_fine_tunes(results: Results) -> str:
    """On every fine-tune AUC against never-planted captions and what is caught, by detector."""
    rows = []
    for name in _fine_tunes(results):
        found = _benched(results, name)
        counts = found["counts"]
        made = sum(counts.get(part, {}).get("images", 0) for part in ("reproduced", "not_reproduced"))
        cells = []
        for one in COMPARED:
            figures = found["detectors"][one]
            auc, caught = (figures[key]["reproduced"]["ordinary"] for key in ("auc", "tpr_at_1pct"))
            cells += [number(auc), interval(caught)]
        first, *changed = name.split(", ")
        rows.append([", ".join([code(first), *changed]), f"{counts['reproduced']['images']} of {made}", *cells])
    heads = [f"{code(one)}, {what}" for one in COMPARED for what in ("AUC", "caught at 1%")]
    return grid(["fine-tune", "copies", *heads], rows)


COMPARED = ("early-detail", "combined", "overestimation", "one-step", "settled-detail", "base-difference")
"""Detectors of the table of fine-tunes: the default, the best published ones, and those that work there."""


def _fine_tunes(results: Results) -> list[str]:
    """The fine-tunes that were measured, those on which `base-difference` was developed first."""
    grounds = results("bench", "grounds")
    found = [name for name in grounds if {*COMPARED} <= grounds[name].get("detectors", {}).keys()]
    return sorted(found, key=lambda name: (", " in name, name))


@table("bench.fine-tunes.maps")
def bench_fine_tunes_maps(results: Results) -> str:
    """On every fine-tune the IoU of the maps with the picture, all of which is memorized."""
    rows = []
    for name in _fine_tunes(results):
        if ", " in name:
            continue
        figures = _benched(results, name, "maps")["maps"]["localizers"]
        others = [one for one in figures if one not in ("settled-detail", "collapse")]
        best = max(others, key=lambda one: figures[one]["iou"]["reproduced"]["value"])
        cells = [interval(figures[one]["iou"]["reproduced"]) for one in ("settled-detail", "collapse")]
        marked = number(figures["settled-detail"]["marked"]["ordinary"])
        rows.append([code(name), *cells, f"{code(best)} {interval(figures[best]['iou']['reproduced'])}", marked])
    heads = ["IoU of `settled-detail`", "IoU of `collapse`", "best published map"]
    return grid(["fine-tune", *heads, "`settled-detail` marks of never-planted captions"], rows)


_OWN = ("combined", "drift", "early-detail", "information", "stability-or-drift")
"""Detectors of this library, whose names no paper has."""


@table("bench.summary")
def bench_summary(results: Results) -> str:
    """The default detector beside the best published one that costs nothing, or on fine-tunes `base-difference`.

    Of the fine-tunes only those that took no part in the development of `base-difference`.
    """
    rows = []
    tuned = _fine_tunes(results)
    for name in [*(name for name in results("bench", "grounds") if name not in tuned), *tuned]:
        # other solvers and scales have a table of their own
        if (", " in name) != (name in tuned):
            continue
        found = _benched(results, name)
        aucs = {one: figures["auc"]["reproduced"] for one, figures in found["detectors"].items()}
        free = [one for one in aucs if found["methods"][one]["cost"] == 0 and one not in _OWN]
        best = max(
            free, key=lambda one: [aucs[one][g]["value"] for g in ("ordinary", "fixed_pixels") if g in aucs[one]]
        )
        for one in (COMPARED[0], COMPARED[-1] if name in tuned else best):
            fixed = aucs[one].get("fixed_pixels")
            caught = found["detectors"][one]["tpr_at_1pct"]["reproduced"]["ordinary"]
            cells = interval(aucs[one]["ordinary"]), "–" if fixed is None else interval(fixed), interval(caught)
            solver = {"flowmatcheulerdiscrete": "Euler of flow matching"}.get(found["solver"], found["solver"].upper())
            model, *changed = name.split(", ")
            regime = f"{code(model)} ({', '.join([*changed, solver])}, guidance {found['guidance']:g})"
            rows.append([regime, code(one), *cells])
    heads = ["AUC against never-planted captions", "AUC against captions that fix most pixels", "caught at 1%"]
    return grid(["model", "detector", *heads], rows)


@table("bench.regimes")
def bench_regimes(results: Results) -> str:
    """The default detector, earlier ones and their parts with other solvers and guidance scales."""
    shown = ("early-detail", "combined", "stability-or-drift", "stability", "guidance-mean", "information", "drift")
    grounds = list(results("bench", "grounds"))
    grounds = [name for name in grounds if ", seed" not in name]
    changed = {name.partition(", ")[0] for name in grounds if ", " in name}
    rows = []
    for name in grounds:
        if name.partition(", ")[0] not in changed:
            continue
        found = _benched(results, name)
        cells = []
        for one in shown:
            against = found["detectors"].get(one, {}).get("auc", {}).get("reproduced", {})
            cells.append(" / ".join(number(against.get(group)) for group in ("ordinary", "fixed_pixels")))
        default = found["detectors"][shown[0]]
        # at a guidance scale that is too high for a model it may reproduce nothing
        reproduced = found["counts"].get("reproduced")
        caught = interval(default["tpr_at_1pct"]["reproduced"]["ordinary"]) if reproduced else "–"
        flagged = interval(default["fpr_met"]["ordinary"])
        regime = code(name.partition(", ")[0]), found["solver"], f"{found['guidance']:g}"
        rows.append([*regime, count(reproduced["images"] if reproduced else 0), *cells, caught, flagged])
    heads = list(map(code, shown))
    ends = ["caught by the default at 1%", "never-planted flagged by the default at 1%"]
    return grid(["model", "solver", "guidance", "reproduced pictures", *heads, *ends], sorted(rows))


@table("bench.left_out")
def bench_left_out(results: Results) -> str:
    """For every ground the detectors that all other grounds choose, and what they reach on this one."""
    results.parts.setdefault("bench", {})["python benchmarks/bench.py"] = results("bench", "made_by", "commit")
    rows = []
    for ground, chosen in results("bench", "leave_one_ground_out").items():
        by = ", ".join(map(code, chosen["chosen_by"]))
        # where one model was measured with detectors that cost nothing only, no others could be chosen
        costly = all(_costly(results("bench", "grounds", one)) for one in (ground, *chosen["chosen_by"]))
        for kind, words in {"free": "those that cost nothing", "any": "those measured on all these models"}.items():
            if (found := chosen.get(kind)) is None or (kind == "any" and not costly):
                continue
            fixed = found["auc"].get("fixed_pixels")
            rows.append(
                [
                    code(ground),
                    words,
                    by,
                    code(found["detector"]),
                    number(found["worst_elsewhere"]),
                    interval(found["auc"]["ordinary"]),
                    "–" if fixed is None else interval(fixed),
                    interval(found["tpr_at_1pct"]),
                ]
            )
    heads = ["smallest AUC elsewhere", "AUC here, never-planted", "AUC here, fixed pixels", "caught at 1% here"]
    return grid(["left out", "chosen among", "chosen by", "chosen", *heads], rows)


def _maps(results: Results, name: str) -> str:
    """Every localizer on one ground, the best first."""
    found = _benched(results, name, "maps")["maps"]
    figures = found["localizers"]
    kinds = [kind for kind in ("verbatim", "template", "object") if kind in next(iter(figures.values()))["iou"]]
    groups = {"ordinary": "never-planted captions", "fixed_pixels": "captions that fix most pixels"}
    groups["free"] = "the free region"
    rows = [["everything marked", *(number(found["everything"][part]) for part in ("reproduced", *kinds)), *["–"] * 5]]
    for one in sorted(figures, key=lambda one: -figures[one]["iou"]["reproduced"]["value"]):
        values = figures[one]
        marked = [values["marked"].get(group) for group in groups]
        rows.append(
            [
                code(one),
                interval(values["iou"]["reproduced"]),
                *(number(values["iou"][kind]) for kind in kinds),
                number(values["oracle_iou"]["reproduced"]),
                *("–" if share is None else number(share) for share in marked),
                f"{found['methods'][one]['cost']:g}",
            ]
        )
    heads = ["IoU", *(f"IoU, {kind}" for kind in kinds), "IoU at the best threshold"]
    return grid(["map", *heads, *(f"marked of {group}" for group in groups.values()), "evaluations"], rows)


for _name in ("scenes", "drawings", "drawings-flow", "drawings-unconditional"):
    table(f"bench.{_name}.maps")(partial(_maps, name=_name))


# What users bring (robustness.json)


@table("robustness.families")
def robustness_families(results: Results) -> str:
    """For every family case, with which of the solvers everything works, everything but one verb, or nothing."""
    rows = []
    for name, solvers in results("robustness", "compatibility").items():
        groups: dict[str, list[str]] = {}
        for solver, found in solvers.items():
            lacking = [verb for verb in VERBS if found.get(verb) != "works"]
            group = "all" if not lacking else "none" if len(lacking) == len(VERBS) else f"no {', '.join(lacking)}"
            groups.setdefault(group, []).append(_solver(solver))
        partly = [f"{', '.join(found)} ({group})" for group, found in groups.items() if group not in ("all", "none")]
        cells = [", ".join(groups.get("all", ())), "; ".join(partly), ", ".join(groups.get("none", ()))]
        rows.append([name, *(cell or "–" for cell in cells)])
    return grid(["family", "everything works with", "a part works with", "refused"], rows)


def _solver(name: str) -> str:
    """The name of a solver without a comma."""
    first, comma, second = name.partition(", ")
    return f"{second} {first}" if comma else name


@table("robustness.refusals")
def robustness_refusals(results: Results) -> str:
    """Why something does not work, in the words of the refusal, with the number of families and the solvers."""
    found: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for name, solvers in results("robustness", "compatibility").items():
        for solver, outcomes in solvers.items():
            for reason in {*outcomes.values()} - {"works"}:
                verbs = ", ".join(verb for verb in VERBS if outcomes.get(verb) == reason)
                families, with_solvers = found.setdefault((_short(reason), verbs), (set(), set()))
                families.add(name)
                with_solvers.add(_solver(solver))
    rows = [
        [reason, "all" if verbs == ", ".join(VERBS) else verbs, str(len(families)), ", ".join(sorted(with_solvers))]
        for (reason, verbs), (families, with_solvers) in sorted(found.items())
    ]
    return grid(["reason", "what does not work", "families", "solvers"], rows)


def _short(reason: str) -> str:
    """A refusal without the names of classes, which the other columns tell, and without what would work instead."""
    words = re.sub(r"<class '[\w.]+'>", "…", reason.partition(": ")[2])
    return re.sub(r"\b\w+(Scheduler|Pipeline)\b", "…", words).partition(";")[0]


@table("robustness.situations")
def robustness_situations(results: Results) -> str:
    """Tests of situations, broken inputs and pairs of family and solver, and what came of them."""
    rows = [
        [area, str(found["tried"]), str(found["silent_errors"]), str(found["tracebacks"])]
        for area, found in results("robustness", "areas").items()
    ]
    matrix = results("robustness", "compatibility")
    verbs = [outcome for solvers in matrix.values() for found in solvers.values() for outcome in found.values()]
    wrong = sum(outcome.startswith("wrong") for outcome in verbs)
    rows.append(["commands of families with solvers", str(len(verbs)), str(wrong), "0"])
    broken = results("robustness", "fuzzing")
    rows.append(
        ["broken files and command lines", str(broken["inputs"]), str(broken["wrong"]), str(broken["tracebacks"])]
    )
    return grid(["", "tried", "silent errors", "tracebacks"], rows)


# Words and what they bring (words.json)


@table("words.named")
def words_named(results: Results) -> str:
    """How often the leading word is the invented name, and how often the picture comes back without a word."""
    rows = []
    for ground, found in results("words", "grounds").items():
        for measure, words in {"left_out": "leaving out", "gradient": "gradient", "random": "a random word"}.items():
            named = found["named"].get(measure)
            cells = "–" if named is None else interval(named), interval(found["reproduced"][measure])
            rows.append([code(ground), words, *cells])
        rows.append([code(ground), "none: the whole caption", "–", interval(found["reproduced"]["nothing"])])
    heads = ["the word is the invented name", "the picture comes back without the word"]
    return grid(["model", "word named by", *heads], rows)


# Published protocols (protocols.json, real_sizes.json)

ASSUMED = 0.1
"""Seconds of one evaluation that the column of hours assumes; nobody measured it."""

PUBLISHED_AUC = {
    "stability": ".9995–.9997",
    "guidance-mean": ".983",
    "guidance-first": ".976",
    "sharpness": ".987",
    "anisotropy": ".994",
    "bright-ending": ".986",
}
"""Detector → AUC on Stable Diffusion 1.4 as published; the page names the sources."""

PUBLISHED_IOU = {
    "bright-ending": ".751",
    "curvature": ".586",
    "curvature-difference": ".899",
    "score-difference": ".830",
    "curvature-difference-checkpoint": ".921",
    "score-difference-checkpoint": ".863",
}
"""Map → IoU on templates of Stable Diffusion 1.4 at the best threshold (arXiv:2605.26756)."""

FILTERED = ("score-difference", "score-difference-checkpoint")
"""Maps that were published with a filter, and are measured here without."""


@table("protocols.cost")
def protocols_cost(results: Results) -> str:
    """What the commands of the published protocols take."""
    rows = []
    for name, found in results("protocols", "commands").items():
        hours = found["total"] * ASSUMED / 3600
        each = f"{found['evaluations']} + {found['extra']:g}"
        rows.append([code(name), str(found["images"]), each, f"{found['total']:,.0f}", f"{hours:.1f}"])
    heads = ["pictures", "evaluations of a picture: run + methods", "total"]
    return grid(["command", *heads, f"hours if *s* = {ASSUMED:g}"], rows)


@table("protocols.here")
def protocols_here(results: Results) -> str:
    """Published figures beside those of two grounds, in the same measures."""
    grounds = ("scenes", "drawings")
    detectors = [_benched(results, ground)["detectors"] for ground in grounds]
    rows = [
        [
            f"AUC of {code(name)}",
            published,
            *(interval(one[name]["auc"]["reproduced"]["ordinary"]) for one in detectors),
        ]
        for name, published in PUBLISHED_AUC.items()
    ]
    maps = [_benched(results, ground, "maps")["maps"] for ground in grounds]
    everything = [number(one["everything"]["template"]) for one in maps]
    rows.append(["IoU of marking everything, templates", ".560", *everything])
    for name, published in PUBLISHED_IOU.items():
        found = [number(one["localizers"][name]["oracle_iou"]["template"]) for one in maps]
        filtered = " (published with a filter, here without)" if name in FILTERED else ""
        rows.append([f"IoU of {code(name)}{filtered}, templates, best threshold", published, *found])
    copies = [
        _mitigated(results, ground)["mitigations"]["stability-published"]["copies"]["either"] for ground in grounds
    ]
    what = "copies left by `stability-published` (published: by SSCD, here: by pixels or edges)"
    rows.append([what, "0.000", *map(interval, copies)])
    return grid(["measure", "published, SD 1.4", *(f"here, {code(ground)}" for ground in grounds)], rows)


@table("real_sizes.commands")
def real_sizes_commands(results: Results) -> str:
    """Time and memory of the commands at the real sizes."""
    rows = []
    for name, found in results("real_sizes", "commands").items():
        times = [f"{found[what]:,.0f}" for what in ("seconds", "cpu_seconds")]
        given = found["arguments"]
        side = given[given.index("--height") + 1] if "--height" in given else "512"
        steps = given[given.index("--steps") + 1]
        rows.append([code(name), f"{side}×{side}", steps, *times, f"{found['peak_gib']:.1f}"])
    heads = ["pictures", "steps", "seconds", "CPU seconds"]
    return grid(["command", *heads, "largest memory of the process, GiB"], rows)


@table("real_sizes.maps")
def real_sizes_maps(results: Results) -> str:
    """What the maps of a picture of 512 by 512 pixels are like."""
    rows = [
        [code(name), "×".join(map(str, found["size"])), number(found["finite"], 2)]
        for name, found in results("real_sizes", "maps").items()
    ]
    return grid(["map", "size", "share of finite values"], rows)


@table("real_sizes.parameters")
def real_sizes_parameters(results: Results) -> str:
    """The networks of the model of the real sizes."""
    rows = [[code(name), f"{count:,}"] for name, count in results("real_sizes", "parameters").items()]
    return grid(["network", "parameters"], rows)


MATCHING_METHODS = {
    "codes": "`cryptomnesia`, codes under weights",
    "pq": "faiss, the same codes",
    "ivf-pq 1": "faiss, IVF-PQ, 1 list",
    "ivf-pq 16": "faiss, IVF-PQ, 16 lists",
    "ivf-pq 128": "faiss, IVF-PQ, 128 lists",
    "flat": "faiss, flat",
}
"""First stages of a search, as matching.json names them, and as a page does."""


@table("matching.methods")
def matching_methods(results: Results) -> str:
    """Time, size and recall of first stages of a search on the same pictures."""
    found = results("matching", "methods")
    rows = []
    for key, name in MATCHING_METHODS.items():
        one = found[key]
        milliseconds = [f"{1000 * one[kind]['value']:,.1f}" for kind in ("one", "each_of_16")]
        # the flat index compares everything, by another distance, and no recall was measured
        shares = [
            number(one[kind][what]) if kind in one else "–"
            for kind in ("whole", "region")
            for what in ("nearest", "next_fifty")
        ]
        built = f"{one['build_seconds']:,.0f}" if "build_seconds" in one else "–"
        rows.append([name, *milliseconds, *shares, built, f"{one['bytes'] / 1e9:,.2f}"])
    heads = ["ms, one query", "ms, each of 16", "nearest", "next fifty", "nearest, region", "next fifty, region"]
    return grid(["first stage", *heads, "seconds to build", "GB"], rows)


@table("matching.rate")
def matching_rate(results: Results) -> str:
    """A search of one query beside the sum of its codes."""
    found = results("matching")
    shares, first = found["of_sum_rate"], found["methods"]["codes"]["one"]["value"]
    rows = [
        ["sum of the codes", f"{1000 * found['sum']['value']:.1f}", "100%"],
        ["first stage", f"{1000 * first:.1f}", f"{shares['first']:.0%}"],
        ["both stages", f"{1000 * (first + found['compare']['value']):.1f}", f"{shares['both']:.0%}"],
    ]
    return grid(
        [f"one query, {found['pictures']:,} pictures, threads: {found['threads']}", "ms", "of the sum's rate"], rows
    )


@table("matching.match")
def matching_match(results: Results) -> str:
    """Seconds of a match that needs a null."""
    rows = []
    for kind, what in (("whole", "whole picture"), ("region", "region")):
        one = results("matching", "match", kind)
        rows.append([what, *(number(one[part], 2) if one[part] else "–" for part in ("seconds", "again"))])
    return grid(["match of one picture", "seconds", "seconds, matched before"], rows)


# Trainings (finetune.json)


@table("finetune.agreement")
def finetune_agreement(results: Results) -> str:
    """How often `finetune` names the checkpoint from which on a training copies."""
    found = results("finetune")
    total = found["copying"] + found["clean"] + found["left"]
    rows = []
    for words, figures in (("pixels or edges", found), ("pixels alone", found["by_pixels"])):
        shares = [
            interval(figures[name]) if figures[name]["value"] is not None else "–"
            for name in ("agreement", "of_one_answer", "late", "early", "false_alarm")
        ]
        rows.append([words, str(figures["copying"]), *shares[:4], str(figures["clean"]), shares[4]])
    headings = ["trainings that copy", "within one checkpoint", "always the same answer", "more than one after"]
    headings.append("more than one before")
    clean = ["trainings that do not", "false alarms"]
    done = f"{total - found['left']} of {total} trainings are done."
    return f"{done}\n\n{grid(['copies by', *headings, *clean], rows)}"


@table("finetune.runs")
def finetune_runs(results: Results) -> str:
    """Every training with the number of pictures that are copied, by checkpoint."""
    rows = []
    for run in results("finetune", "runs"):
        way = "in full" if run["rank"] is None else f"LoRA, rank {run['rank']}"
        counts = [" ".join(map(str, run[name][1:])) for name in ("copied", "reproduced_by_either", "reproduced")]
        shown = f"{run['pictures']:,} × {run['exposures']}"
        rows.append([f"`{run['ground']}`", way, shown, f"{run['share']:g}", str(run["steps"][-1]), *counts])
    heads = ["`finetune`: copied", "reproduced, by either", "reproduced, by pixels"]
    return grid(["base", "training", "pictures × exposures", "rate", "steps", *heads], rows)


# Given pictures (find.json)


@table("find.answers")
def find_answers(results: Results) -> str:
    """How many pictures got which answer."""
    verdicts = ("reproducible", "retained", "not evidenced", "undecided")
    grounds = results("find", "grounds")
    rows = [
        [f"`{ground}`", rung, *(str(counts.get(verdict, 0)) for verdict in verdicts)]
        for ground, figures in grounds.items()
        for rung, counts in figures["answers"].items()
    ]
    header = ["ground", "pictures: kind, exposures", *(f"`{verdict}`" for verdict in verdicts[:2]), *verdicts[2:]]
    return grid(header, rows)


@table("find.retained")
def find_retained(results: Results) -> str:
    """The share of planted pictures that are retained."""
    rows = [
        [f"`{ground}`", kind, *(interval(shares[rung]) if rung in shares else "" for rung in _rungs(results))]
        for ground, figures in results("find", "grounds").items()
        for kind, shares in figures["retained"].items()
    ]
    return grid(["ground", "kind", *(f"{rung} exposures" for rung in _rungs(results))], rows)


def _rungs(results: Results) -> list[str]:
    """The rungs of all grounds, the highest first."""
    grounds = results("find", "grounds").values()
    found = {rung for figures in grounds for shares in figures["retained"].values() for rung in shares}
    return sorted(found, key=int, reverse=True)


@table("find.statistics")
def find_statistics(results: Results) -> str:
    """How well each statistic separates pictures of the top rung from pictures that were never planted."""
    words = {
        "score": "**the largest of those that decide**",
        "own/whole": "error under the caption",
        "caption/whole": "what the caption adds",
        "caption/window": "what the caption adds, in a window",
        "none/whole": "error without a caption",
        "none/window": "error without a caption, in a window",
        "other/whole": "error under the caption of another picture",
        "caption gap": "error under another caption against that under its own",
        "scale/own": "critical scale under the caption (arXiv:2609.39648)",
        "scale/none": "critical scale without a caption",
        "scale gap/own": "critical scale under the caption against that without one",
        "scale gap/other": "critical scale without a caption against that under another one",
        "curvature": "curvature difference (arXiv:2605.26756), mean",
    }
    grounds = results("find", "grounds")
    columns = [(ground, kind) for ground, figures in grounds.items() for kind in figures["auc"]["score"]]

    def cell(name: str, ground: str, kind: str) -> str:
        found = grounds[ground]["auc"].get(name, {})
        return number(found[kind]) if kind in found else ""

    rows = [[text, *(cell(name, ground, kind) for ground, kind in columns)] for name, text in words.items()]
    # results that are older lack some
    rows = [row for row in rows if any(row[1:])]
    return grid(["AUC", *(f"`{ground}`, {kind}" for ground, kind in columns)], rows)


@table("find.controls")
def find_controls(results: Results) -> str:
    """How often pictures that were never planted are called retained."""
    grounds = results("find", "grounds")

    def row(words: str, of: Callable[[dict[str, Any]], Any]) -> list[str]:
        return [words, *(interval(of(figures)) for figures in grounds.values())]

    rows = [
        row("never-planted pictures, alike in kind and complexity", lambda figures: figures["controls"]),
        row(
            "the same by the first answer, over draws of the controls (least–largest)",
            lambda figures: figures["splits"],
        ),
        row("ordinary pictures, which are of another kind than the controls", lambda figures: figures["ordinary"]),
        row("top rung, p ≤ 5% under its caption", lambda figures: figures["swap"]["own"]),
        row("top rung, p ≤ 5% under the caption of another picture", lambda figures: figures["swap"]["other"]),
        row("top rung, p ≤ 5% without a caption", lambda figures: figures["swap"]["none"]),
    ]
    return grid(["share", *(f"`{ground}`" for ground in grounds)], rows)


@table("find.localization")
def find_localization(results: Results) -> str:
    """Masks against what is planted."""
    rows = [
        [f"`{ground}`", kind, str(found["pictures"]), number(found["iou"]), number(found["beside"])]
        for ground, figures in results("find", "grounds").items()
        for kind, found in figures["localization"].items()
    ]
    return grid(["ground", "kind", "pictures", "IoU", "share of the rest that is marked"], rows)


@table("find.cost")
def find_cost(results: Results) -> str:
    """What a picture costs."""
    rows = []
    for ground, figures in results("find", "grounds").items():
        cells = [f"`{ground}`"]
        for part in ("first", "closer"):
            cells += [f"{figures['evaluations'][part]:.0f}", number(figures["seconds_per_picture"][part], 2)]
        rows.append(cells)
    header = ["evaluations, first answer", "seconds", "evaluations with the closer look", "seconds of the closer look"]
    return grid(["ground", *header], rows)
