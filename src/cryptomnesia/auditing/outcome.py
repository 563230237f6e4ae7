"""What a finished run says: evidence per image and prompt, and the gate. Needs no model."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from cryptomnesia.auditing.as_json import finite
from cryptomnesia.auditing.checking import check_about, check_rows
from cryptomnesia.auditing.evidence import Gate, Level, gate
from cryptomnesia.auditing.safeguard import Safeguard, is_same, level_behind, reaches, unsure_behind
from cryptomnesia.auditing.store import Store, batch_count
from cryptomnesia.calibration.likeness import scores_unlike
from cryptomnesia.errors import UsageError
from cryptomnesia.registry import OWN, Kind, entries, missing
from cryptomnesia.settings import AuditSettings
from cryptomnesia.tracing.columns import NORM, SIGNAL

SCHEMA = 3
"""Version of `Outcome.to_json`, whose JSON schema is report/static/report.schema.json."""

IMAGES: Literal["images"] = "images"
SCORES: Literal["scores"] = "scores"
"""Stages of a run from which its outcome is read."""

_HIDDEN = frozenset({"prompt", "made_by", "fdr", "fpr_given", "map", "mask", "timesteps"})
"""Columns that the JSON report gives elsewhere, or that are too long for it."""


@dataclass(frozen=True)
class Judged:
    """A prompt and its images.

    Attributes:
        prompt: the text.
        level: the highest level among its images; `unknown` only if no image has a higher one.
        images: rows of evidence, worst first.
        behind: the highest level among what a guard returned for its images; None without a guard.
        unsure_behind: whether any of that could not be judged in full.
    """

    prompt: str
    level: Level
    images: list[dict[str, Any]]
    behind: Level | None = None
    unsure_behind: bool = False

    @property
    def p_value(self) -> float:
        """The smallest p-value of its images, NaN if none has one."""
        known = [row["p_value"] for row in self.images if not math.isnan(row["p_value"])]
        return min(known, default=math.nan)

    @property
    def unsure(self) -> bool:
        """Whether an image could not be judged in full: it has no score, or not the map that it should have."""
        return any(row["level"] == Level.unknown.name or row["map_missing"] is not None for row in self.images)


@dataclass(frozen=True)
class Outcome:
    """What a run says.

    Attributes:
        about: what the run depended on.
        settings: the settings of the run.
        detector: name of the detector by whose score images are suspected.
        made_by: everything that changes that score, in words.
        fpr: false-positive rate at which images are suspected.
        prompts: worst first.
        gate: whether the model is within the limit; with a guard, whether what the guard returns is.
        fdr: false-discovery rate of the prompts that are suspected, from which `fpr` follows; None without one.
        safeguard: what a guard changes; None without one.
    """

    about: dict[str, Any]
    settings: AuditSettings
    detector: str
    made_by: str
    fpr: float
    prompts: list[Judged]
    gate: Gate
    fdr: float | None = None
    safeguard: Safeguard | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of prompts by level of evidence, strongest first."""
        found = Counter(judged.level for judged in self.prompts)
        return {level.name: found[level] for level in sorted(Level, reverse=True)}

    @property
    def unmapped(self) -> int:
        """The number of images for which there should be a map and none could be computed."""
        return sum(row["map_missing"] is not None for judged in self.prompts for row in judged.images)

    @cached_property
    def unlike(self) -> list[str]:
        """How prompts and scores differ visibly from those of the references, in sentences; empty if they do not."""
        # images of one caption are not independent, so each caption counts once, by its first image
        rows = [
            row
            for judged in self.prompts
            for row in sorted(judged.images, key=lambda row: row["seed"])[: 1 if judged.prompt.strip() else None]
        ]
        # runs of earlier versions do not say how large the null was
        scores = scores_unlike([row["p_value"] for row in rows], self.about.get("null", 0))
        return [*self.about.get("unlike", []), *scores.values()]

    @cached_property
    def missing(self) -> dict[str, str]:
        """Kind and name of every method of the run that this installation lacks → why; empty where none is missing."""
        methods = [("detector", self.detector), *self.about["methods"].items()]
        reasons = {f"{kind} {name}": not_installed(kind, name) for kind, name in methods if name is not None}
        return {method: reason for method, reason in reasons.items() if reason}

    def to_json(self) -> dict[str, Any]:
        """Everything but norms, signals, maps and masks, as JSON values."""
        return {
            "schema": SCHEMA,
            "about": finite({key: value for key, value in self.about.items() if key not in ("prompts", "unlike")}),
            "detector": self.detector,
            "made_by": self.made_by,
            "fpr": self.fpr,
            "fdr": self.fdr,
            "counts": self.counts,
            "unmapped": self.unmapped,
            "unlike": self.unlike,
            "gate": {
                "fail_on": self.settings.fail_on,
                "guarded": self.safeguard is not None,
                "outcome": self.gate.outcome,
                "limit": self.gate.limit,
                "share": self.gate.share.value,
                "low": self.gate.share.low,
                "high": self.gate.share.high,
                "hits": self.gate.hits,
                "unknown": self.gate.unknown,
                "prompts": self.gate.prompts,
                "needed": self.gate.needed,
            },
            "safeguard": None if self.safeguard is None else self.safeguard.to_json(),
            "prompts": [
                {
                    "prompt": judged.prompt,
                    "level": judged.level.name,
                    "behind": None if judged.behind is None else judged.behind.name,
                    "images": [_row_to_json(row) for row in judged.images],
                }
                for judged in self.prompts
            ],
        }


def outcome(store: Store, *, fail_on: str | None = None, max_rate: float | None = None) -> Outcome:
    """The outcome of a finished run.

    Args:
        store: of the run.
        fail_on: level of evidence that counts against the model, the run's own when None.
        max_rate: share of prompts that may reach it, the run's own when None.

    Raises:
        UsageError: for a run that is not finished, or a level or share that is not possible.
    """
    check_about(store.about, store.folder)
    settings = AuditSettings.resolve(
        store.about["settings"] | _given(fail_on=fail_on, max_rate=max_rate), environment={}
    )
    # runs of earlier versions do not say so
    guard = store.about.get("guard")
    check_gate(settings, localized=store.about["methods"]["localizer"] is not None, guarded=guard is not None)
    batches = batch_count(len(store.about["prompts"]) * settings.images_per_prompt, settings.batch_size)
    missing = len(store.missing(IMAGES, batches))
    if missing or store.missing(SCORES, 1):
        raise UsageError(
            f"{store.folder} is not finished: {batches - missing} of {batches} batches; run `cryptomnesia audit` with "
            "the same settings again to go on"
        )
    images, scores = store.rows(IMAGES), store.rows(SCORES)
    units = units_of(store.about["prompts"], settings)
    check_rows(images, IMAGES, units, store.folder, guarded=guard is not None)
    check_rows(scores, SCORES, units, store.folder)
    grouped: dict[str, list[dict[str, Any]]] = {prompt: [] for prompt in store.about["prompts"]}
    for recorded, scored in zip(images, scores, strict=True):
        grouped[recorded["prompt"]].append(recorded | scored)
    prompts = []
    for prompt, rows in grouped.items():
        rows.sort(key=_worst_first)
        judged = Judged(prompt, max(Level[row["level"]] for row in rows), rows)
        prompts.append(judged if guard is None else _behind(judged, settings.fpr))
    prompts.sort(key=lambda judged: (-judged.level, _worst_first(judged.images[0])))
    decision = decided(prompts, settings, behind=guard is not None)
    safeguard = None
    if guard is not None:
        least = Level[settings.fail_on]
        safeguard = Safeguard.of(
            guard,
            images,
            compared=store.about["index"] is not None,
            without=decided(prompts, settings, behind=False),
            behind=decision,
            levels=[
                reaches(least, *_levels(judged), same=all(is_same(row) for row in judged.images)) for judged in prompts
            ],
        )
    about = store.about | {"settings": settings.model_dump(mode="json")}
    first = scores[0]
    judged_by = first["detector"], first["made_by"], first["fpr"]
    return Outcome(about, settings, *judged_by, prompts, decision, first.get("fdr"), safeguard)


def _behind(judged: Judged, fpr: float) -> Judged:
    """A prompt with the level of what a guard that flags at the rate `fpr` returned."""
    return replace(
        judged,
        behind=max(level_behind(row, fpr) for row in judged.images),
        unsure_behind=any(unsure_behind(row, fpr) for row in judged.images),
    )


def _levels(judged: Judged) -> tuple[tuple[Level, bool], tuple[Level, bool]]:
    """Level of a prompt, and whether an image could not be judged in full, without a guard and behind it."""
    assert judged.behind is not None
    return (judged.level, judged.unsure), (judged.behind, judged.unsure_behind)


def decided(prompts: Sequence[Judged], settings: AuditSettings, *, behind: bool) -> Gate:
    """The gate over prompts.

    Args:
        prompts: at least one.
        settings: level and limit of the gate.
        behind: whether it judges what a guard returned, instead of what the model made.
    """
    both = [_levels(judged)[1] if behind else (judged.level, judged.unsure) for judged in prompts]
    return gate(
        [level for level, _ in both],
        Level[settings.fail_on],
        settings.max_rate,
        unsure=[unsure for _, unsure in both],
    )


def units_of(prompts: Sequence[str], settings: AuditSettings) -> list[tuple[str, int]]:
    """Prompt and seed of every image of a run; every image has its own seed, as pictures of one seed share their noise.

    Args:
        prompts: of the run, each once.
        settings: of the run.
    """
    repeated = [prompt for prompt in prompts for _ in range(settings.images_per_prompt)]
    return [(prompt, settings.seed + number) for number, prompt in enumerate(repeated)]


def check_gate(settings: AuditSettings, *, localized: bool, guarded: bool = False) -> None:
    """Refuse a gate that every model would pass in the end, because no image can reach its level.

    Args:
        settings: of the run.
        localized: whether flagged images get maps.
        guarded: whether the gate judges what is left behind a guard.

    Raises:
        UsageError: saying what to change.
    """
    compared = settings.index is not None or settings.training_images is not None
    if guarded and settings.max_rate > 0 and not compared:
        raise UsageError(
            f"got max_rate = {settings.max_rate:g} and a guard without training images, and a guard returns only "
            "pictures that its own score calls ordinary, so every model would pass; give index or training_images, or "
            "leave the guard out"
        )
    if settings.fail_on == "corroborated" and settings.max_rate > 0 and not (localized or compared):
        raise UsageError(
            f"got max_rate = {settings.max_rate:g} for corroborated prompts, and without maps and training images none "
            "can be corroborated, so every model would pass; give fail_on = 'suspected', training images or a localizer"
        )


def not_installed(kind: Kind, name: str) -> str:
    """Why a method of a stored run cannot be used in this installation, "" where it can."""
    # the mean of a map is a detector under the name of the map
    if kind == "detector" and name not in entries("detector") and name in entries("localizer"):
        kind = "localizer"
    if name not in entries(kind):
        return "no installed package registers it"
    entry = entries(kind)[name]
    # this package's own methods are there, and to load them takes seconds
    return "" if entry.package == OWN and not entry.rivals else missing(kind, name)


def _given(**values: Any) -> Mapping[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _worst_first(row: dict[str, Any]) -> tuple[int, float]:
    p_value = row["p_value"]
    return -Level[row["level"]], 2.0 if math.isnan(p_value) else p_value


def _row_to_json(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row that are short, as JSON values."""
    return {
        key: finite(value) for key, value in row.items() if key not in _HIDDEN and not key.startswith((NORM, SIGNAL))
    }
