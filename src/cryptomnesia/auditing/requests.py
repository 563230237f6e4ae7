"""An audit as it was asked for: settings, objects and arguments of the pipeline's call, told apart by their names."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.origins.options import parse_options
from cryptomnesia.places import is_remote, place
from cryptomnesia.prompts import captions_of
from cryptomnesia.settings import AuditSettings

logger = logging.getLogger("cryptomnesia")

OBJECTS = ("detector", "localizer", "mitigation", "calibration", "guard")
"""Settings that may be given as objects."""

LOADING = ("scheduler", "dtype", "device", "variant", "revision", "lora", "unet", "transformer", "base", "without")
"""Settings that say how a model is loaded."""

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
        references: what the file of references holds, if it has been read already.
    """

    model: Any
    prompts: Sequence[str] | Path
    settings: AuditSettings
    objects: Mapping[str, Any]
    call: Mapping[str, Any]
    references: Sequence[str] | None = None

    @classmethod
    def of(cls, model: Any, prompts: Iterable[str] | str | Path, values: Mapping[str, Any]) -> "Request":
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
        objects = {
            name: values[name]
            for name in OBJECTS
            if not (isinstance(values.get(name), str | Path | None) or is_remote(values[name]))
        }
        named = {name: value for name, value in values.items() if name not in objects}
        if isinstance(model, str | Path):
            named["model"] = str(model)
        elif given := sorted(name for name in LOADING if values.get(name)):
            raise UsageError(
                f"got {' and '.join(given)} with a loaded pipeline, which has its own; change the pipeline, or give "
                "the model's name"
            )
        if isinstance(prompts, str | Path) or is_remote(prompts):
            prompts = place(prompts)
            named["prompts"] = prompts
        else:
            # an iterator is spent after it was read once
            prompts = captions_of(prompts)
        settings = AuditSettings.resolve(named, environment={})
        options = parse_options(settings.option)
        if both := sorted(options.keys() & call.keys()):
            raise UsageError(f"got {', '.join(both)} both as an option and as an argument; give it once")
        return cls(model, prompts, settings, objects, call | options)

    def texts(self) -> list[str]:
        """The prompts, each once.

        Raises:
            UsageError: for a file that cannot be read, or prompts that are no text.
        """
        texts = captions_of(self.prompts, self.settings.column)
        if not texts:
            raise UsageError("got no prompts; give at least one")
        once = list(dict.fromkeys(texts))
        if repeated := len(texts) - len(once):
            logger.info("%d of %d prompts are repeated, and are audited once", repeated, len(texts))
        return once


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
