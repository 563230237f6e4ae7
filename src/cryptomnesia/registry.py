"""Methods by name: the package's own and those of other packages, found through entry points.

A method is registered by an entry point of its package, in one of four groups: `cryptomnesia.detectors`,
`cryptomnesia.localizers`, `cryptomnesia.mitigations` and `cryptomnesia.families`. The entry point names a class or a
function without required arguments that makes the method; of a family, whose entry is named after the pipeline class,
it names a class that takes the pipeline. This package registers its methods in the same way.

Nothing is imported before a method is asked for. So a package that cannot be imported does no harm until then, and the
error then names the package.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args

from cryptomnesia.errors import CryptomnesiaError, UsageError

Kind = Literal["detector", "localizer", "mitigation", "family"]
"""What can be registered."""

GROUPS: dict[Kind, str] = {
    "detector": "cryptomnesia.detectors",
    "localizer": "cryptomnesia.localizers",
    "mitigation": "cryptomnesia.mitigations",
    "family": "cryptomnesia.families",
}
"""The entry-point group of every kind."""

SWITCH = "CRYPTOMNESIA_PLUGINS"
"""Environment variable that is `off` to use no methods of other packages."""

OWN = "cryptomnesia"
"""The distribution of this package."""

MEMBERS: Mapping[str, tuple[str, ...]] = {
    "method": (
        "name",
        "summary",
        "source",
        "use_when",
        "avoid_when",
        "requires",
        "observes",
        "check",
        "describe",
        "cost",
    ),
    "detector": ("running", "score", "reads", "norms", "signals", "earliest", "settled"),
    "localizer": ("map", "step", "baseline", "evaluations"),
    "mitigation": ("remake", "correction", "alters", "blinds", "maps", "stronger"),
}
"""What every method has, and what a method of a kind has besides; behind the kind comes what has no default."""

BASES: Mapping[str, str] = {"detector": "Detector", "localizer": "Localizer", "mitigation": "Mitigation"}
"""The class of `cryptomnesia` that a method of a kind is derived from."""


class PluginError(CryptomnesiaError):
    """A registered method that cannot be loaded or made; the message names its package."""


@dataclass(frozen=True)
class Entry:
    """A registered method.

    Attributes:
        kind: what it is.
        name: under which it is registered.
        package: that registers it; "?" if its metadata does not say.
        version: of that package.
        point: the entry point.
        rivals: further packages that register the same name.
    """

    kind: Kind
    name: str
    package: str
    version: str
    point: EntryPoint
    rivals: tuple[str, ...] = ()

    def load(self) -> Any:
        """The class or function that makes the method.

        Raises:
            UsageError: if two packages register the name.
            PluginError: if the package cannot be imported, with its error as the cause.
        """
        if self.rivals:
            packages = ", ".join((self.package, *self.rivals))
            raise UsageError(
                f"the {self.kind} {self.name!r} is registered by more than one package: {packages}; uninstall all but "
                "one"
            )
        try:
            return self.point.load()
        # a package may raise anything while it is imported, also leave the process
        except (Exception, SystemExit) as error:
            raise self._error(f"cannot be loaded ({type(error).__name__}: {error})") from error

    def make(self) -> Any:
        """The method with its default settings.

        Raises:
            UsageError: if two packages register the name.
            PluginError: if the package cannot be imported, or what it registers makes no such method.
        """
        factory = self.load()
        if not callable(factory):
            raise self._error(f"is {factory!r}, which is neither a class nor a function that makes the method")
        try:
            method: Any = factory()
        except (Exception, SystemExit) as error:
            raise self._error(f"cannot be made without arguments ({type(error).__name__}: {error})") from error
        try:
            lacking = lacks(self.kind, method)
        # its attributes may be properties, whose code can raise anything
        except Exception as error:
            raise self._error(f"fails when it is looked at ({type(error).__name__}: {error})") from error
        if lacking:
            raise self._error(f"makes {method!r}, which lacks {lacking}")
        if method.name != self.name:
            raise self._error(f"calls itself {method.name!r}, and must have the name under which it is registered")
        return method

    def _error(self, what: str) -> PluginError:
        return PluginError(
            f"the {self.kind} {self.name!r} of the package {self.package} {self.version} {what}; mend or "
            "uninstall that package"
        )

    @property
    def state(self) -> str:
        """`ready`, or why the method cannot be used. Imports the method's package and makes the method."""
        try:
            if self.kind == "family":
                self.load()
            else:
                self.make()
        except CryptomnesiaError as error:
            return str(error)
        return "ready"


def entries(kind: Kind) -> dict[str, Entry]:
    """Name → entry of everything of a kind that is registered, this package's own first; imports nothing.

    The environment variable CRYPTOMNESIA_PLUGINS=off leaves out what other packages register.

    Raises:
        UsageError: for an unknown kind, or another value of CRYPTOMNESIA_PLUGINS than on and off.
    """
    if kind not in GROUPS:
        raise UsageError(f"got the unknown kind {kind!r}; known are {', '.join(get_args(Kind))}")
    switch = os.environ.get(SWITCH, "").strip().lower() or "on"
    if switch not in ("on", "off"):
        raise UsageError(f"got {SWITCH} = {os.environ[SWITCH]!r}; give on, or off to leave out other packages' methods")
    return _entries(kind, others=switch == "on")


@cache
def _entries(kind: Kind, *, others: bool) -> dict[str, Entry]:
    found: dict[str, list[Entry]] = {}
    for point in entry_points(group=GROUPS[kind]):
        package = point.dist.name if point.dist is not None else "?"
        if not others and package != OWN:
            continue
        version = point.dist.version if point.dist is not None else "?"
        alike = found.setdefault(point.name, [])
        # one distribution can be found twice, for instance when its folder is on the path in two ways
        if all((entry.package, entry.point.value) != (package, point.value) for entry in alike):
            alike.append(Entry(kind, point.name, package, version, point))
    merged = {
        name: dataclasses.replace(alike[0], rivals=tuple(entry.package for entry in alike[1:]))
        for name, alike in found.items()
    }
    return dict(sorted(merged.items(), key=lambda item: (item[1].package != OWN, item[0])))


def names(kind: Kind) -> str:
    """The registered names of a kind, for messages."""
    return ", ".join(entries(kind)) or "none: this installation of cryptomnesia has no entry points, so reinstall it"


def entry(kind: Kind, name: str) -> Entry:
    """The entry of the method `name`.

    Raises:
        UsageError: for a name that no package registers.
    """
    if name not in entries(kind):
        raise UsageError(f"got the unknown {kind} {name!r}; known are {names(kind)}")
    return entries(kind)[name]


def load(kind: Kind, name: str) -> Any:
    """The class or function that makes the method `name`.

    Raises:
        UsageError: for a name that no package registers, or two packages do.
        PluginError: if the package that registers it cannot be imported.
    """
    return entry(kind, name).load()


def lacks(kind: Kind, method: Any) -> str:
    """The attributes that an object lacks as a method of a kind, "" if it has them all.

    An object need not be derived from the kind's class, but then it has to define everything itself.
    """
    absent = [name for name in (*MEMBERS["method"], *MEMBERS[kind]) if not hasattr(method, name)]
    if absent:
        base = (OWN, BASES[kind])
        derived = base in {(kind_of.__module__.partition(".")[0], kind_of.__name__) for kind_of in type(method).__mro__}
        fix = "define it" if derived else f"derive it from cryptomnesia.{BASES[kind]}, which has defaults for the rest"
        return f"{', '.join(absent)}; {fix}"
    functions = ("check", "describe", "cost", MEMBERS[kind][0])
    if broken := [name for name in functions if not callable(getattr(method, name))]:
        return f"the method {broken[0]}()"
    return "" if isinstance(method.name, str) and method.name else f"a name: it has {method.name!r}"


def create(kind: Kind, method: Any) -> Any:
    """A method that was given by name or as an object.

    Args:
        kind: `detector`, `localizer` or `mitigation`.
        method: its name, its class, or the method itself, which is returned as it is.

    Raises:
        UsageError: for an unknown name, or an object that is no method of the kind.
        PluginError: if the package that registers the name cannot be imported, or its method is broken.
    """
    if isinstance(method, str):
        return entry(kind, method).make()
    if isinstance(method, type):
        try:
            method = method()
        except TypeError as error:
            raise UsageError(
                f"got the class {method.__name__} as {kind}, which cannot be made without arguments ({error}); give an "
                "object"
            ) from error
    try:
        lacking = lacks(kind, method)
    # its attributes may be properties, whose code can raise anything
    except Exception as error:
        raise UsageError(
            f"got an object of {type(method).__name__} as {kind}, which fails when it is looked at "
            f"({type(error).__name__}: {error}); mend that class"
        ) from error
    if lacking:
        raise UsageError(f"got {method!r} as {kind}, which lacks {lacking}, or give a registered name ({names(kind)})")
    return method


def missing(kind: Kind, name: str) -> str:
    """Why the method `name` of a stored result cannot be used in this installation, "" where it can."""
    try:
        create(kind, name)
    except CryptomnesiaError as error:
        return str(error)
    return ""


def methods(kind: Kind | None = None) -> Iterator[Entry]:
    """All registered detectors, localizers and mitigations, or those of one kind; imports nothing.

    Example:
        >>> [entry.name for entry in methods("detector")][:2]
        ['anisotropy', 'attention-entropy']
    """
    kinds: tuple[Kind, ...] = ("detector", "localizer", "mitigation") if kind is None else (kind,)
    for one in kinds:
        yield from entries(one).values()
