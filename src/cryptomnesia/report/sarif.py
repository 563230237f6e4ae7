"""The audit as SARIF 2.1.0, the format that code hosts show findings in."""

import hashlib
import math
import re
from typing import Any
from urllib.parse import quote

from cryptomnesia import __version__
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import Judged, Outcome
from cryptomnesia.report.meanings import meanings

_RULES = {
    Level.confirmed: ("error", "An image reproduces a training image."),
    Level.corroborated: ("warning", "A score and a second signal suggest memorization."),
    Level.suspected: ("note", "Few ordinary images have a score as high as this."),
}


def sarif(found: Outcome) -> dict[str, Any]:
    """A result for every prompt whose level is evidence; its place is the prompts file, if there was one."""
    prompts = found.settings.prompts
    uri = None if prompts is None else prompts.as_uri() if prompts.is_absolute() else quote(prompts.as_posix())
    return {
        "version": "2.1.0",
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "cryptomnesia",
                        "semanticVersion": __version__,
                        "rules": [
                            {
                                "id": level.name,
                                "shortDescription": {"text": text},
                                **{key: {"text": meanings(found)[level]} for key in ("fullDescription", "help")},
                                "defaultConfiguration": {"level": severity},
                            }
                            for level, (severity, text) in _RULES.items()
                        ],
                    }
                },
                "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": _unknown(found)}],
                "results": [_result(judged, uri) for judged in found.prompts if judged.level in _RULES],
            }
        ],
    }


def _result(judged: Judged, uri: str | None) -> dict[str, Any]:
    severity, text = _RULES[judged.level]
    p = "" if math.isnan(judged.p_value) else f" (p = {judged.p_value:.3g})"
    behind = "" if judged.behind is None else f". Behind the guard: {judged.behind.name}"
    file = {} if uri is None else {"physicalLocation": {"artifactLocation": {"uri": uri}}}
    return {
        "ruleId": judged.level.name,
        "ruleIndex": list(_RULES).index(judged.level),
        "level": severity,
        "message": {"text": f"{text} Prompt: {_literal(judged.prompt)}{p}{behind}"},
        # so that hosts distinguish the prompts of one file, and recognize them in the next run
        "partialFingerprints": {"prompt/v1": hashlib.sha256(judged.prompt.encode()).hexdigest()},
        "locations": [{**file, "logicalLocations": [{"name": judged.prompt, "kind": "prompt"}]}],
    }


def _unknown(found: Outcome) -> list[dict[str, Any]]:
    """A warning if prompts could not be judged, because no result says so."""
    if not found.gate.unknown:
        return []
    return [{"level": "warning", "message": {"text": f"{found.gate.unknown} prompts could not be judged in full."}}]


def _literal(text: str) -> str:
    """`text` with brackets and braces escaped, of which SARIF would make links and placeholders."""
    return re.sub(r"[{}]", r"\g<0>\g<0>", re.sub(r"[\\\[\]]", r"\\\g<0>", text))
