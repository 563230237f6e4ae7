"""The audit as SARIF 2.1.0, the format that code hosts show findings in."""

import hashlib
import re
from typing import Any
from urllib.parse import quote

from cryptomnesia import __version__
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import Judged, Outcome
from cryptomnesia.report.meanings import meanings

_RULES = {
    Level.confirmed: ("error", "An image reproduces a training image."),
    Level.corroborated: ("warning", "A score and a second signal speak for memorization."),
    Level.suspected: ("note", "A score is as high as few ordinary images have it."),
}


def sarif(found: Outcome) -> dict[str, Any]:
    """A result for every prompt of a level that is evidence; its place is the prompts file."""
    prompts = found.settings.prompts
    uri = prompts.as_uri() if prompts.is_absolute() else quote(prompts.as_posix())
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
                "results": [_result(each, uri) for each in found.prompts if each.level in _RULES],
            }
        ],
    }


def _result(judged: Judged, uri: str) -> dict[str, Any]:
    severity, text = _RULES[judged.level]
    p = f" (p = {judged.p_value:.3g})" if judged.p_value == judged.p_value else ""
    return {
        "ruleId": judged.level.name,
        "ruleIndex": list(_RULES).index(judged.level),
        "level": severity,
        "message": {"text": f"{text} Prompt: {_literal(judged.prompt)}{p}"},
        # so that hosts tell the prompts of one file apart, and know them again in the next run
        "partialFingerprints": {"prompt/v1": hashlib.sha256(judged.prompt.encode()).hexdigest()},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": uri}},
                "logicalLocations": [{"name": judged.prompt, "kind": "prompt"}],
            }
        ],
    }


def _unknown(found: Outcome) -> list[dict[str, Any]]:
    """That some prompts could not be judged, which no result says."""
    if not found.gate.unknown:
        return []
    return [{"level": "warning", "message": {"text": f"{found.gate.unknown} prompts could not be judged in full."}}]


def _literal(text: str) -> str:
    """`text` where SARIF would make links of brackets and placeholders of braces."""
    return re.sub(r"[{}]", r"\g<0>\g<0>", re.sub(r"[\\\[\]]", r"\\\g<0>", text))
