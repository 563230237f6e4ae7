"""What a finished run says: evidence per image and prompt, and the gate. Needs no model."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from cryptomnesia.auditing.evidence import Gate, Level, gate
from cryptomnesia.auditing.options import Settings, resolve
from cryptomnesia.auditing.store import Store, batch_count
from cryptomnesia.errors import UsageError

SCHEMA = 1
"""Version of `Outcome.to_json`, whose JSON schema is report/static/report.schema.json."""

IMAGES, SCORES = "images", "scores"
"""Stages of a run that its outcome is read from."""

LONG = ("delta", "z", "x0", "guidance", "drift", "map", "mask")
"""Columns of a run that are long, and not in the JSON report."""

MEAN = "_mean"
"""Behind the name of a map: the column of its spatial mean, which the report has as a score."""


@dataclass(frozen=True)
class Judged:
    """A prompt and its images.

    Attributes:
        prompt: the text.
        level: the highest among its images; unknown only if none is higher and some could not be judged.
        images: rows of evidence, worst first.
    """

    prompt: str
    level: Level
    images: list[dict[str, Any]]

    @property
    def p_value(self) -> float:
        """The smallest of its images, NaN if none has one."""
        known = [row["p_value"] for row in self.images if row["p_value"] == row["p_value"]]
        return min(known, default=float("nan"))

    @property
    def unsure(self) -> bool:
        """Whether some image could not be judged."""
        return any(row["level"] == Level.unknown.name for row in self.images)


@dataclass(frozen=True)
class Outcome:
    """What a run says.

    Attributes:
        about: what the run depended on.
        settings: of the run.
        detector: whose score was a suspicion.
        rate: false-positive rate at which it was.
        prompts: worst first.
        gate: whether the model is within the limit.
    """

    about: dict[str, Any]
    settings: Settings
    detector: str
    rate: float
    prompts: list[Judged]
    gate: Gate

    @property
    def counts(self) -> dict[str, int]:
        """Prompts by level of evidence, strongest first."""
        found = Counter(each.level for each in self.prompts)
        return {level.name: found[level] for level in sorted(Level, reverse=True)}

    def to_json(self) -> dict[str, Any]:
        """Everything but the signals, as JSON values."""
        hidden = (*LONG, "prompt")
        return {
            "schema": SCHEMA,
            "about": {key: value for key, value in self.about.items() if key != "prompts"},
            "detector": self.detector,
            "rate": self.rate,
            "counts": self.counts,
            "gate": {
                "fail_on": self.settings.fail_on,
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
            "prompts": [
                {
                    "prompt": each.prompt,
                    "level": each.level.name,
                    "images": [
                        {
                            key: _known(value)
                            for key, value in row.items()
                            if key not in hidden and not key.endswith(MEAN)
                        }
                        for row in each.images
                    ],
                }
                for each in self.prompts
            ],
        }


def outcome(store: Store, *, fail_on: str | None = None, max_rate: float | None = None) -> Outcome:
    """The outcome of a finished run.

    Args:
        store: of the run.
        fail_on: level of evidence that counts, the run's own when None.
        max_rate: share of prompts that may reach it, likewise.

    Raises:
        UsageError: for a run that is not finished, or a level or share that cannot be.
    """
    given = {name: value for name, value in (("fail_on", fail_on), ("max_rate", max_rate)) if value is not None}
    settings = resolve(store.about["settings"] | given, environment={})
    size = batch_count(len(store.about["prompts"]) * settings.images_per_prompt, settings.batch_size)
    if store.done(IMAGES) < size or not store.done(SCORES):
        raise UsageError(
            f"{store.folder} is not finished: {store.done('images')} of {size} batches; run `cryptomnesia audit` with "
            "the same settings again to go on"
        )
    scores = store.rows(SCORES)
    rows = [{**row, **own} for row, own in zip(store.rows(IMAGES), scores, strict=True)]
    grouped: dict[str, list[dict[str, Any]]] = {prompt: [] for prompt in store.about["prompts"]}
    for row in rows:
        row["p_value"], row["score"] = row[f"{row['detector']}_p"], row[f"{row['detector']}_score"]
        grouped[row["prompt"]].append(row)
    judged = []
    for prompt, images in grouped.items():
        images.sort(key=_worst)
        judged.append(Judged(prompt, max(Level[row["level"]] for row in images), images))
    judged.sort(key=lambda each: (-each.level, _worst(each.images[0])))
    levels = [each.level for each in judged]
    unsure = [each.unsure for each in judged]
    decision = gate(levels, Level[settings.fail_on], settings.max_rate, unsure=unsure)
    about = store.about | {"settings": settings.model_dump(mode="json")}
    return Outcome(about, settings, scores[0]["detector"], scores[0]["rate"], judged, decision)


def _worst(row: dict[str, Any]) -> tuple[int, float]:
    p = row["p_value"]
    return -Level[row["level"]], p if p == p else 2.0


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))) else value
