"""Where in the picture is it memorized? One file per method; `localizer` finds a method by its name."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import Localizer, Map, Watched
from cryptomnesia.localizers.baseline import Baseline
from cryptomnesia.localizers.bright_ending import BrightEnding
from cryptomnesia.localizers.collapse import Collapse
from cryptomnesia.localizers.curvature import Curvature, CurvatureDifference
from cryptomnesia.localizers.jacobian.diagonal import Diagonal, DiagonalEstimator
from cryptomnesia.localizers.score_difference import GuidanceMap, ScoreDifference
from cryptomnesia.localizers.settled_detail import SettledDetail
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create

__all__ = [
    "Baseline",
    "BrightEnding",
    "Collapse",
    "Curvature",
    "CurvatureDifference",
    "Diagonal",
    "DiagonalEstimator",
    "GuidanceMap",
    "Localizer",
    "Map",
    "ScoreDifference",
    "SettledDetail",
    "Watched",
    "configured",
    "default_localizer",
    "localizer",
    "localizers_of",
]

DEFAULTS = ("settled-detail", "settled-detail-empty", "curvature")
"""Names of the localizers to choose from when none is given; the first that works in the set-up is taken."""


def localizer(method: str | Any, setup: Setup | None = None) -> Localizer:
    """A localizer that was given by name or as an object.

    Args:
        method: a registered localizer, `auto` for the default, or an object.
        setup: for which `auto` is chosen.

    Raises:
        UsageError: for an unknown name, or `auto` without a set-up.
        PluginError: if the package that registers the name cannot be imported.
    """
    if method != "auto":
        return create("localizer", method)
    if setup is None:
        raise UsageError("got the localizer 'auto' without a set-up to choose it for; name one")
    return default_localizer(setup)


def default_localizer(setup: Setup) -> Localizer:
    """The localizer that is used when none is given.

    Raises:
        UsageError: if none works in the set-up.
    """
    found = setup.first_accepted("localizer", DEFAULTS)
    if found is None:
        raise UsageError(
            f"none of the localizers {', '.join(DEFAULTS)} works in this set-up; name another one, or use none"
        )
    return found


def localizers_of(methods: str | Any | Sequence[str | Any], setup: Setup) -> list[Localizer]:
    """Localizers that were given by name or as objects.

    Args:
        methods: one or several; see `localizer`.
        setup: in which all of them have to work.

    Raises:
        UsageError: for no localizer, one that is unknown or cannot work, or two with the same name.
    """
    listed = methods if isinstance(methods, list | tuple) else [methods]
    found = [localizer(method, setup) for method in listed]
    if not found:
        raise UsageError("got no map to compute; name at least one localizer")
    names = [method.name for method in found]
    if len(set(names)) < len(names):
        raise UsageError(
            f"got the maps {', '.join(names)}, of which two have the same name; compute them one after the other"
        )
    setup.check(found)
    return found


def configured(method: Localizer, **settings: Any) -> Localizer:
    """A localizer with other settings, `step` and `estimator` for instance.

    Settings that the localizer does not have, and those that are None, are passed over.
    """
    if not dataclasses.is_dataclass(method) or isinstance(method, type):
        return method
    fields = {field.name for field in dataclasses.fields(method)}
    changed: Any = method
    return dataclasses.replace(
        changed, **{name: value for name, value in settings.items() if name in fields and value is not None}
    )
