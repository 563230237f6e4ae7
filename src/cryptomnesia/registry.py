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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from cryptomnesia.errors import CryptomnesiaError, UsageError

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup

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

Requirement = Literal["guidance", "captions", "checkpoint"]
"""What a method can require of a set-up: an unconditional branch, captions in words, a less-trained checkpoint."""


class PluginError(CryptomnesiaError):
    """A registered method that cannot be loaded; the message names its package."""


class Method(Protocol):
    """What detectors, localizers and mitigations have in common.

    A method is a frozen dataclass or another immutable object; its constructor stores settings and nothing else.

    Attributes:
        name: under which it is registered, and by which results name it.
        summary: what it does, in one sentence.
        source: the paper or the package that it comes from.
        use_when: when to use it, as Markdown text for the method's page.
        avoid_when: when not to use it, and what to use then, as Markdown text.
        requires: what the set-up must have.
    """

    @property
    def name(self) -> str:
        """Under which it is registered, and by which results name it."""
        ...

    summary: str = ""
    source: str = ""
    use_when: str = ""
    avoid_when: str = ""

    @property
    def requires(self) -> frozenset[Requirement]:
        """What the set-up must have; nothing unless a method says otherwise."""
        return frozenset()

    @property
    def observes(self) -> str:
        """What the result is made from. Two methods that observe the same thing do not corroborate each other."""
        return self.name

    def check(self, setup: "Setup") -> None:
        """Refuse a set-up in which the method cannot work; `requires` is checked before.

        Raises:
            UsageError: saying what was got, what was expected and the fix.
        """

    def describe(self) -> str:
        """Everything that changes the result, in words; two methods that are described alike give the same result."""
        return describe(self)

    def cost(self, setup: "Setup") -> float:
        """Denoiser evaluations (all guidance branches of one step of one image) beyond the generation itself."""
        return 0.0


def describe(method: Any) -> str:
    """The name of a method and its settings, as far as it is a dataclass."""
    settings = (
        ", ".join(f"{field.name}={getattr(method, field.name)!r}" for field in dataclasses.fields(method) if field.repr)
        if dataclasses.is_dataclass(method)
        else ""
    )
    return f"{method.name}({settings})"


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
                f"the {self.kind} {self.name!r} is registered by more than one package: {packages}; uninstall all but one"
            )
        try:
            return self.point.load()
        # a package may raise anything while it is imported
        except Exception as error:
            raise PluginError(
                f"the {self.kind} {self.name!r} of the package {self.package} {self.version} cannot be loaded "
                f"({type(error).__name__}: {error}); mend or uninstall that package"
            ) from error

    @property
    def state(self) -> str:
        """`ready`, or why the method cannot be used. Imports the method's package."""
        try:
            self.load()
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


def load(kind: Kind, name: str) -> Any:
    """The class or function that makes the method `name`.

    Raises:
        UsageError: for a name that nobody registers, or two packages do.
        PluginError: if the package that registers it cannot be imported.
    """
    if name not in entries(kind):
        raise UsageError(f"got the unknown {kind} {name!r}; known are {names(kind)}")
    return entries(kind)[name].load()


def create(kind: Kind, method: Any) -> Any:
    """A method that was given by name or as an object.

    Args:
        kind: `detector`, `localizer` or `mitigation`.
        method: its name, its class, or the method itself, which is returned as it is.

    Raises:
        UsageError: for an unknown name, or an object that is no method of the kind.
        PluginError: if the package that registers the name cannot be imported.
    """
    if isinstance(method, str):
        made = load(kind, method)()
        if made.name != method:
            package = entries(kind)[method].package
            raise PluginError(
                f"the {kind} {method!r} of the package {package} calls itself {made.name!r}; rename either"
            )
        return made
    if isinstance(method, type):
        method = method()
    needed = {"detector": "running", "localizer": "map", "mitigation": "remake"}[kind]
    if not callable(getattr(method, needed, None)) or not isinstance(getattr(method, "name", None), str):
        raise UsageError(
            f"got {method!r} as {kind}; give a registered name ({names(kind)}), or an object with `name` and `{needed}`"
        )
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
        ['drift', 'guidance-first']
    """
    for each_kind in ("detector", "localizer", "mitigation") if kind is None else (kind,):
        yield from entries(each_kind).values()
