"""The audit as SARIF 2.1.0, the format that code hosts show findings in."""

from typing import Any

from cryptomnesia import __version__
from cryptomnesia.audit.outcome import Outcome
from cryptomnesia.evidence import Level

_RULES = {
    Level.confirmed: ("error", "An image reproduces a training image."),
    Level.corroborated: ("warning", "A score and a second signal speak for memorization."),
    Level.suspected: ("note", "A score is as high as few ordinary images have it."),
}


def sarif(found: Outcome) -> dict[str, Any]:
    """A result for every prompt of a level that is evidence; its place is the prompts file."""
    file = str(found.settings.prompts)
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
                                "defaultConfiguration": {"level": severity},
                            }
                            for level, (severity, text) in _RULES.items()
                        ],
                    }
                },
                "results": [
                    {
                        "ruleId": each.level.name,
                        "level": _RULES[each.level][0],
                        "message": {"text": f"{_RULES[each.level][1]} Prompt: {each.prompt} (p = {each.p_value:.3g})"},
                        "locations": [
                            {
                                "physicalLocation": {"artifactLocation": {"uri": file}},
                                "logicalLocations": [{"name": each.prompt, "kind": "prompt"}],
                            }
                        ],
                    }
                    for each in found.prompts
                    if each.level in _RULES
                ],
            }
        ],
    }
