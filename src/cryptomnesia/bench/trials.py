"""What a bench generates: captions with the truth about them, from a proving ground or from a file."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.proving_ground.manifest import Entry, Manifest

MEMORIZED = "memorized"
"""The group of the positives; every other group is one of negatives."""

RESERVED = ("reference", "labelled", "reproduced", "not_reproduced", "free")
"""Names of parts of a bench, which no group of negatives can have."""

HARD = ("rare_name", "fixed_pixels", "frequent")
"""Kinds of hard negatives of the proving grounds."""

FIRST_SEED = 5_000_000
"""Seed of the first image, far from the seeds of calibrations and of `verify`."""


@dataclass(frozen=True)
class Trial:
    """One image that is to be generated.

    Attributes:
        prompt: its caption.
        group: `MEMORIZED`, or the name of a group of negatives.
        cluster: what it shares with images that are not independent of it: the planted concept, or the caption.
        seed: of its noise.
        kind: of a planted concept: `verbatim`, `template` or `object`; "" where it is not known.
        wording: of its caption: `named`, `plain` or `mode`; "" where it is not known.
        mask: file of a picture that is white where the images of a memorized caption are memorized; "" for everywhere,
            and where a proving ground knows it.
    """

    prompt: str
    group: str
    cluster: str
    seed: int
    kind: str = ""
    wording: str = ""
    mask: str = ""


def of_ground(manifest: Manifest, positives: int, negatives: int, references: Sequence[str] = ()) -> list[Trial]:
    """The trials of a proving ground.

    They are about `positives` images of its top rung, the same number of every concept, and `negatives` ordinary
    captions, the look-alikes of planted captions, and for every kind of hard negative at least half as many images as
    there are positives.

    Args:
        manifest: of the ground's model.
        positives: images of planted concepts.
        negatives: ordinary captions, one image of each.
        references: captions of the calibration; a look-alike without a name may be one of them, and is left out.
    """
    top = [entry for entry in manifest.counted if entry.exposures == manifest.top]
    rows = [(MEMORIZED, entry, caption) for entry, caption in _repeated(top, positives)]
    ordinary: list[tuple[str, Entry | None, str]] = [
        ("ordinary", None, caption) for caption in manifest.control_captions("evaluation", negatives)
    ]
    alike: list[tuple[str, Entry | None, str]] = [
        ("look_alike", None, caption)
        for caption in manifest.look_alikes.get("evaluation", [])
        if caption not in references
    ]
    hard = [
        (kind, entry, caption)
        for kind in HARD
        for entry, caption in _repeated([e for e in manifest.entries if e.kind == kind], positives // 2)
    ]
    return [
        Trial(
            caption,
            group,
            caption if entry is None else entry.id,
            FIRST_SEED + number,
            "" if entry is None or not entry.planted else entry.kind,
            "" if entry is None else entry.wording,
        )
        for number, (group, entry, caption) in enumerate([*rows, *ordinary, *alike, *hard])
    ]


def _repeated(entries: Sequence[Entry], images: int) -> Iterator[tuple[Entry, str]]:
    """Every entry equally often, with its captions in turn, in `images` images or a few more."""
    for entry in entries:
        for caption in islice(cycle(entry.captions), -(-images // len(entries))):
            yield entry, caption


def of_file(path: Path, images_per_prompt: int = 1) -> list[Trial]:
    """The trials of a labelled file: CSV with a header, or JSON lines.

    Its columns are `prompt`, `label`, and perhaps `cluster` and `mask`, the path of a picture, relative to the file,
    that is white where images are memorized. The label `memorized` marks positives; every other label
    is the name of a group of negatives. Prompts with the same cluster are not independent; by default every prompt is
    a cluster.

    Args:
        path: of the file.
        images_per_prompt: images of every prompt.

    Raises:
        UsageError: for a file that cannot be read, lacks a column, or has no positives or no negatives.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            raise UsageError(f"got the labels {path}; give a .csv or .jsonl file with the columns prompt and label")
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}); give another file") from None
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path} is malformed ({error}); give a .csv or .jsonl file") from None
    trials: list[Trial] = []
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        given = row if isinstance(row, dict) else {}
        prompt, label = (given.get(name) for name in ("prompt", "label"))
        if not (isinstance(prompt, str) and prompt.strip() and isinstance(label, str) and label.strip()):
            raise UsageError(f"{path}, row {number}: got {row!r}; give every row a prompt and a label, both texts")
        prompt, label = prompt.strip(), label.strip()
        if label in RESERVED:
            raise UsageError(
                f"{path}, row {number}: got the label {label}, which a bench needs itself; give another one"
            )
        if labels.setdefault(prompt, label) != label:
            raise UsageError(f"{path} has the prompt {prompt!r} with the labels {labels[prompt]} and {label}; give one")
        for _ in range(images_per_prompt):
            cluster = str(given.get("cluster") or prompt)
            mask = str(path.parent / str(given["mask"])) if given.get("mask") else ""
            if mask and not Path(mask).is_file():
                raise UsageError(f"{path}, row {number}: there is no mask {mask}; give the path of a picture")
            trials.append(Trial(prompt, label, cluster, FIRST_SEED + len(trials), mask=mask))
    groups = {trial.group for trial in trials}
    if MEMORIZED not in groups or len(groups) < 2:
        found = ", ".join(sorted(groups)) or "no rows"
        raise UsageError(f"{path} has the labels {found}; give rows with the label {MEMORIZED}, and others")
    return trials
