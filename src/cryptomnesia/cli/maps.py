"""Localizers with the settings that a command was given, and what they and detectors are compared with."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cryptomnesia.cli.bundled import early_checkpoint
from cryptomnesia.cli.common import pipeline_of
from cryptomnesia.errors import UsageError
from cryptomnesia.settings import CalibrateSettings, DetectSettings, GuardSettings, LocalizeSettings, PlaceSettings

if TYPE_CHECKING:
    from cryptomnesia.localizers import Localizer
    from cryptomnesia.pipelines.setup import Setup

BASE_DIFFERENCE = "base-difference"
"""The detector that compares a fine-tune with its base."""

_MOST_PROBES = 512
"""Probes of a map that stops at the wanted error."""

_MOST_EVALUATIONS = 10**6
"""No run has as many."""

_MOST_BYTES = 2**60
"""No machine has as many, and torch counts no further than eight times as far."""


def named_localizers(names: Sequence[str]) -> "list[Localizer]":
    """The localizers of these names with their default settings; `auto` is left out.

    Raises:
        CryptomnesiaError: for a name that nobody registers, or a package that cannot be imported.
    """
    from cryptomnesia.localizers import localizer

    return [localizer(name) for name in names if name != "auto"]


def localizers_for(settings: PlaceSettings, names: "Sequence[str | Localizer]", setup: "Setup") -> "list[Localizer]":
    """These localizers, with `--at`, `--probes`, `--wanted` and `--memory` where they have such settings.

    Raises:
        UsageError: for a name that is unknown or given twice, for one that cannot work in the set-up, or for a setting
            that none of the localizers has.
    """
    from cryptomnesia.localizers import configured, localizer, localizers_of

    at, probes, memory = settings.at, settings.probes, settings.memory
    if probes is None and settings.wanted is not None:
        probes = _MOST_PROBES
    if at is not None and not (at.is_integer() and abs(at) < _MOST_EVALUATIONS) and not 0 <= at < 1:
        raise UsageError(f"got --at {at:g}; give the number of an evaluation, or a share of the run from 0 to below 1")
    step = int(at) if at is not None and at.is_integer() else at
    estimate = {
        "probes": probes,
        "wanted": settings.wanted,
        "memory": None if memory is None else max(1, round(min(memory * 2**30, _MOST_BYTES))),
    }
    found = [localizer(name, setup) for name in names]
    _check_used(settings, found)
    changed = []
    for method in found:
        estimator: Any = getattr(method, "estimator", None)
        settable = {name: value for name, value in estimate.items() if value is not None and name in _fields(estimator)}
        estimator = dataclasses.replace(estimator, **settable) if settable else None
        changed.append(configured(method, step=step, estimator=estimator))
    return localizers_of(changed, setup)


def _check_used(settings: PlaceSettings, localizers: "Sequence[Localizer]") -> None:
    """Refuse settings that none of the localizers has."""
    has = {
        "at": any("step" in _fields(method) for method in localizers),
        **{
            name: any(name in _fields(getattr(method, "estimator", None)) for method in localizers)
            for name in ("probes", "wanted", "memory")
        },
    }
    for name, used in has.items():
        if getattr(settings, name) is not None and not used:
            which = ", ".join(method.name for method in localizers) or "no localizer"
            raise UsageError(
                f"got --{name}, and {which} has no such setting; leave it out, or give another --localizer"
            )


def _fields(value: Any) -> set[str]:
    """The names of the fields of a dataclass, none of another object."""
    return {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()


def checkpoint_of(
    settings: LocalizeSettings | CalibrateSettings, names: Sequence[str], detectors: Sequence[str] = ()
) -> Any:
    """The less-trained checkpoint that was given, or that comes with the bundled model; None if no method needs one.

    The one that comes with the bundled model is for localizers: a detector that compares with a base has to be given
    one.

    Raises:
        UsageError: if one was given that no method needs.
    """
    needing = [method.name for method in named_localizers(names) if "checkpoint" in method.requires]
    if settings.checkpoint is not None and BASE_DIFFERENCE in detectors:
        needing.append(BASE_DIFFERENCE)
    if not needing:
        if settings.checkpoint is not None:
            raise UsageError(
                f"got --checkpoint {settings.checkpoint}, and no localizer that is compared with a checkpoint; give "
                "--localizer with a name that ends in -checkpoint, leave --checkpoint out, or give it to `calibrate` "
                f"with --detector {BASE_DIFFERENCE}"
            )
        return None
    model = settings.checkpoint or early_checkpoint(str(settings.model))
    if model is None:
        raise UsageError(f"{needing[0]} needs a less-trained checkpoint of {settings.model}; give one as `checkpoint`")
    return pipeline_of(settings, model)


def check_base(settings: DetectSettings | GuardSettings | CalibrateSettings, detectors: Sequence[str]) -> None:
    """Refuse the detector that compares a fine-tune with its base if no base was given.

    Raises:
        UsageError: saying how to give it.
    """
    if BASE_DIFFERENCE in detectors and settings.checkpoint is None:
        raise UsageError(f"{BASE_DIFFERENCE} compares a fine-tune with its base; give the base as --checkpoint MODEL")


def compared(settings: DetectSettings | GuardSettings) -> Any:
    """The detector that was named; if it compares a fine-tune with its base, with the base that was given.

    Raises:
        UsageError: for a base that the detector does not need, or if it needs one and none was given.
    """
    if settings.checkpoint is None:
        check_base(settings, [settings.detector])
        return settings.detector
    if settings.detector != BASE_DIFFERENCE:
        raise UsageError(
            f"got --checkpoint {settings.checkpoint}, and the detector {settings.detector} is compared with none; give "
            f"--detector {BASE_DIFFERENCE}, or leave --checkpoint out"
        )
    from cryptomnesia.detectors import BaseDifference

    return BaseDifference(pipeline_of(settings, settings.checkpoint))
