"""A score packet: every score of a bench, with what it depends on, and the figures that follow from them."""

import hashlib
import json
import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.files import write_whole

SCHEMA = 1
"""Version of the format, whose JSON schema is packet.schema.json."""


@dataclass(frozen=True)
class Packet:
    """The scores of a bench.

    Attributes:
        about: what they depend on: model, weights, set-up, digest of the reference captions, versions of packages.
        methods: name of a detector → `describe`, everything that changes its scores in words; `cost`, further
            evaluations of the network per image; and `earliest`, the evaluation after which it has a score.
        rows: one per image: group, cluster, prompt, seed, kind, wording, `reproduced` (None where it is not known),
            `distance` to what was planted, and `scores` and `p_values` by detector, None where it could not tell.
        figures: what `figures_of` makes of the rows.
    """

    about: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    figures: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the packet as JSON, compressed if the name of the file ends in .xz."""
        kept = {"about": self.about, "methods": self.methods, "rows": self.rows}
        values = {"schema": SCHEMA, "digest": digest(kept), "figures": self.figures, **kept}
        content = (json.dumps(plain(values), indent=1) + "\n").encode()
        write_whole(path, lzma.compress(content) if path.suffix == ".xz" else content)

    @classmethod
    def load(cls, path: Path) -> "Packet":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, malformed, or of another version, or whose rows were changed.
        """
        try:
            content = path.read_bytes()
            values = json.loads(lzma.decompress(content) if path.suffix == ".xz" else content)
            found = values["schema"], values["digest"]
            kept = {name: values[name] for name in ("about", "methods", "rows")}
            packet = cls(**kept, figures=values["figures"])
        except (EOFError, lzma.LZMAError) as error:
            raise UsageError(f"{path} is no compressed file ({error}); give a file that `bench` made") from None
        except OSError as error:
            raise UsageError(
                f"cannot read the packet {path} ({error.strerror}); give a file that `bench` made"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no score packet ({error!r}); give a file that `bench` made") from None
        if found[0] != SCHEMA:
            raise UsageError(f"{path} has the schema {found[0]}, this version reads {SCHEMA}; make it again")
        if found[1] != digest(kept):
            raise UsageError(
                f"the scores of {path}, or what they depend on, are not those that were written; make it again"
            )
        return packet


def digest(values: dict[str, Any]) -> str:
    """SHA-256 of JSON values with sorted keys."""
    return hashlib.sha256(json.dumps(plain(values), sort_keys=True).encode()).hexdigest()


def differences(kept: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    """Where figures differ from those of a packet by more than rounding, as paths of keys."""
    return list(_differing("", plain(kept), plain(figures)))


def _differing(path: str, first: Any, second: Any) -> Iterator[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in {**first, **second}:
            yield from _differing(f"{path}.{key}" if path else key, first.get(key), second.get(key))
    elif isinstance(first, int | float) and isinstance(second, int | float):
        if not math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12):
            yield path
    elif first != second:
        yield path


def plain(value: Any) -> Any:
    """A value as JSON holds it: None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
