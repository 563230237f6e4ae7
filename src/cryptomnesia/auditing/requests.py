"""An audit as it was asked for: settings, objects and arguments of the pipeline's call, told apart by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.prompts import read_prompts
from cryptomnesia.settings import AuditSettings

OBJECTS = ("detector", "localizer", "mitigation", "calibration")
"""Settings that may be given as objects."""

SAME_AS = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
"""Arguments of a pipeline's call → the settings that they are the same as."""


@dataclass(frozen=True)
class Request:
    """An audit as it was asked for; `plan` loads what it names.

    Attributes:
        model: a loaded pipeline, or the name of a model.
        prompts: the texts, or a file of them.
        settings: the other settings; what is given as an object has its default here.
        objects: names of settings → methods, and the calibration, that were given as objects.
        call: further arguments of the pipeline's own call by name; whether it takes them is seen when it is loaded.
    """

    model: Any
    prompts: Sequence[str] | Path
    settings: AuditSettings
    objects: Mapping[str, Any]
    call: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any, prompts: Sequence[str] | str | Path, values: Mapping[str, Any]) -> "Request":
        """The request of a call of `audit`.

        Raises:
            UsageError: for settings that are not possible.
        """
        values = _without_synonyms(values)
        call = {
            name: value
            for name, value in values.items()
            if name not in AuditSettings.model_fields and value is not None
        }
        values = {name: value for name, value in values.items() if name in AuditSettings.model_fields}
        objects = {name: values[name] for name in OBJECTS if not isinstance(values.get(name), str | Path | None)}
        named = {name: value for name, value in values.items() if name not in objects}
        if isinstance(model, str | Path):
            named["model"] = str(model)
        elif given := sorted(name for name in ("scheduler", "dtype") if values.get(name) is not None):
            raise UsageError(
                f"got {' and '.join(given)} with a loaded pipeline, which has its own; change the pipeline, or give "
                "the model's name"
            )
        if isinstance(prompts, str | Path):
            prompts = Path(prompts)
            named["prompts"] = prompts
        return cls(model, prompts, AuditSettings.resolve(named, environment={}), objects, call)

    def texts(self) -> list[str]:
        """The prompts, each once.

        Raises:
            UsageError: for a file that cannot be read, or prompts that are no text.
        """
        if isinstance(self.prompts, Path):
            return list(dict.fromkeys(read_prompts(self.prompts)))
        texts = list(dict.fromkeys(self.prompts))
        if not texts:
            raise UsageError("got no prompts; give at least one")
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"got the prompt {text!r}; give texts, or a file of them")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UsageError(f"got the prompt {text!r} with half of a surrogate pair; write it out whole")
        return texts


def _without_synonyms(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a call of `audit`, with the settings in the place of arguments that are the same."""
    found = {name: value for name, value in values.items() if name not in SAME_AS}
    for name in sorted(values.keys() & SAME_AS):
        setting = SAME_AS[name]
        if values[name] is None:
            continue
        if found.get(setting) is not None:
            raise UsageError(f"got both {setting} and {name}, which are the same; give one of them")
        found[setting] = values[name]
    return found
