"""Methods by name: entry points are made by hand here, and nothing is installed."""

import sys
import types
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint
from typing import NamedTuple

import pytest
import torch

from cryptomnesia import Detector, Localizer, Mitigation, PluginError, UsageError, methods, registry
from cryptomnesia.detectors import detector, free_detectors
from cryptomnesia.localizers import Map
from cryptomnesia.pipelines.setup import Method, describe
from cryptomnesia.registry import BASES, GROUPS, MEMBERS, create, entries, missing
from cryptomnesia.testing.setups import SETUPS


class Package(Distribution):
    """An installed package, as far as entry points ask it."""

    def __init__(self, name, version="1.2"):
        self._name, self._version = name, version

    @property
    def name(self):
        return self._name

    @property
    def version(self):
        return self._version

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        return path


class Plain:
    """A detector that is derived from nothing and has only what it needs to be called."""

    name = "plain"

    def running(self, runs, references):
        return runs.norms["delta"]


class Small(Detector):
    name = "small"
    reads = frozenset({"delta"})

    def running(self, runs, references):
        return runs.norms["delta"]


def failing():
    raise RuntimeError("no licence")


@pytest.fixture
def installed(monkeypatch):
    """Register entry points besides those of the package: (kind, name, value, package) each."""
    usual = registry.entry_points
    more = []

    def entry_points(group):
        return [*usual(group=group), *(point for point in more if point.group == group)]

    def install(kind, name, value, package="others", version="1.2"):
        point = EntryPoint(name, value, GROUPS[kind])
        vars(point).update(dist=Package(package, version))
        more.append(point)
        registry._entries.cache_clear()

    monkeypatch.setattr(registry, "entry_points", entry_points)
    module = types.ModuleType("others")
    module.Small, module.Plain, module.failing, module.number = Small, Plain, failing, 7
    monkeypatch.setitem(sys.modules, "others", module)
    registry._entries.cache_clear()
    yield install
    registry._entries.cache_clear()


def test_a_method_of_another_package_is_found_by_its_name(installed):
    installed("detector", "small", "others:Small")
    assert isinstance(create("detector", "small"), Small)
    (entry,) = (entry for entry in methods("detector") if entry.name == "small")
    assert (entry.package, entry.version, entry.kind, entry.state) == ("others", "1.2", "detector", "ready")
    assert missing("detector", "small") == ""
    assert "small" in [found.name for found in free_detectors(SETUPS["Stable Diffusion"]())]


def test_the_package_lists_its_own_methods_first(installed):
    installed("detector", "a-first", "others:Small")
    names = [entry.name for entry in methods("detector")]
    assert names[-1] == "a-first"
    assert names[:-1] == sorted(names[:-1])
    assert {"drift", "guidance-mean", "sharpness", "stability"} < set(names)
    assert {entry.kind for entry in methods()} == {"detector", "localizer", "mitigation"}
    assert {entry.package for entry in methods()} == {"cryptomnesia", "others"}


@pytest.mark.parametrize("kind", ["detector", "localizer", "mitigation"])
def test_every_method_of_the_package_is_ready_and_says_when_to_use_it(kind):
    for entry in methods(kind):
        assert entry.state == "ready"
        method = create(kind, entry.name)
        assert method.name == entry.name
        for text in (method.summary, method.source, method.use_when, method.avoid_when):
            assert text.strip(), f"{entry.name} leaves a text out"


def test_a_broken_package_costs_nothing_until_it_is_asked_for(installed):
    installed("detector", "broken", "no_such_module_here:Broken", "brittle", "0.3")
    (entry,) = (entry for entry in methods("detector") if entry.name == "broken")
    assert (entry.package, entry.version) == ("brittle", "0.3")
    assert create("detector", "drift").name == "drift"
    assert "broken" not in [found.name for found in free_detectors(SETUPS["Stable Diffusion"]())]
    with pytest.raises(
        PluginError, match=r"the detector 'broken' of the package brittle 0\.3 cannot be loaded"
    ) as raised:
        create("detector", "broken")
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
    assert "No module named 'no_such_module_here'" in str(raised.value)
    assert "brittle 0.3" in entry.state
    assert missing("detector", "broken") == entry.state


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("others:failing", r"cannot be made without arguments \(RuntimeError: no licence\)"),
        ("others:Absent", "cannot be loaded"),
        ("others:number", "is 7, which is neither a class nor a function"),
        ("others:Small", "calls itself 'small', and must have the name under which it is registered"),
        ("others:Plain", "makes <.*Plain.*>, which lacks summary, source,"),
        ("builtins:dict", "makes {}, which lacks name,"),
    ],
)
def test_what_a_package_registers_has_to_make_the_method(installed, value, message):
    installed("detector", "odd", value, "strange", "7")
    with pytest.raises(PluginError, match=f"the detector 'odd' of the package strange 7 {message}"):
        create("detector", "odd")
    assert "strange 7" in entries("detector")["odd"].state
    assert "odd" not in [found.name for found in free_detectors(SETUPS["Stable Diffusion"]())]


def test_the_error_of_a_factory_is_the_cause(installed):
    installed("detector", "odd", "others:failing")
    with pytest.raises(PluginError) as raised:
        create("detector", "odd")
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_two_packages_of_one_name_are_both_named(installed):
    installed("detector", "small", "others:Small", "first")
    installed("detector", "small", "others:Plain", "second")
    with pytest.raises(UsageError, match="more than one package: first, second; uninstall all but one"):
        create("detector", "small")
    assert create("detector", "drift").name == "drift"
    (entry,) = (entry for entry in methods("detector") if entry.name == "small")
    assert "first, second" in entry.state


def test_a_package_cannot_take_the_place_of_a_method_of_this_one(installed):
    installed("detector", "drift", "others:Small", "usurper")
    with pytest.raises(UsageError, match="cryptomnesia, usurper"):
        create("detector", "drift")


def test_a_package_that_is_found_twice_is_no_rival(installed):
    installed("detector", "small", "others:Small")
    installed("detector", "small", "others:Small")
    assert create("detector", "small").name == "small"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown localizer 'colapse'; known are bright-ending, collapse, "):
        create("localizer", "colapse")
    with pytest.raises(UsageError, match=r"detector 'colapse'; known are anisotropy, .*, stability, .*, collapse, "):
        detector("colapse")
    assert "unknown mitigation 'gone'" in missing("mitigation", "gone")


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown kind 'detectors'; known are detector, localizer, mitigation, family"):
        entries("detectors")


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    registry._entries.cache_clear()
    try:
        with pytest.raises(UsageError, match="this installation of cryptomnesia has no entry points, so reinstall it"):
            create("detector", "drift")
    finally:
        registry._entries.cache_clear()


@pytest.mark.parametrize("kind", ["detector", "localizer", "mitigation"])
def test_an_object_of_the_wrong_kind_is_refused(kind):
    other = {"detector": "rephrasing", "localizer": "rephrasing", "mitigation": "collapse"}[kind]
    wrong = create({"detector": "mitigation", "localizer": "mitigation", "mitigation": "localizer"}[kind], other)
    with pytest.raises(
        UsageError,
        match=f"as {kind}, which lacks .*; derive it from cryptomnesia.{BASES[kind]}, .*, or give a registered name",
    ):
        create(kind, wrong)
    with pytest.raises(UsageError, match=f"got 3 as {kind}, which lacks name,"):
        create(kind, 3)


def test_the_members_of_a_method_are_those_of_its_protocol():
    def public(protocol):
        declared = {**vars(protocol), **vars(protocol).get("__annotations__", {})}
        return {name for name in declared if not name.startswith("_")}

    assert public(Method) == set(MEMBERS["method"])
    for kind, protocol in (("detector", Detector), ("localizer", Localizer), ("mitigation", Mitigation)):
        assert public(protocol) - set(MEMBERS["method"]) == set(MEMBERS[kind])
        assert BASES[kind] == protocol.__name__
        assert getattr(protocol, MEMBERS[kind][0]).__isabstractmethod__


# every way in which the author of another package would write a detector


class ByConstructor(Detector):
    """Its attributes are set by its constructor."""

    def __init__(self, weight=1.0):
        self.name = "by-constructor"
        self.summary = "A detector whose constructor sets everything."
        self.requires = frozenset({"guidance"})
        self.reads = frozenset({"delta"})
        self.observes = "the updates"
        self.weight = weight

    def running(self, runs, references):
        return self.weight * runs.norms["delta"]


class BySlots(Detector):
    __slots__ = ("weight",)
    name = "by-slots"
    requires = frozenset({"guidance"})
    observes = "the updates"

    def __init__(self, weight=1.0):
        self.weight = weight

    def running(self, runs, references):
        return self.weight * runs.norms["delta"]


class ByProperty(Detector):
    def __init__(self, weight=1.0):
        self._weight = weight

    @property
    def name(self):
        return "by-property"

    @property
    def weight(self):
        return self._weight

    @property
    def requires(self):
        return frozenset({"guidance"})

    @property
    def observes(self):
        return "the updates"

    def describe(self):
        return f"by-property(weight={self.weight})"

    def running(self, runs, references):
        return self.weight * runs.norms["delta"]


@dataclass(frozen=True)
class ByField(Detector):
    """Everything is a field, the name without a default."""

    name: str = "by-field"
    weight: float = 1.0
    requires: frozenset[str] = frozenset({"guidance"})
    observes: str = "the updates"

    def running(self, runs, references):
        return self.weight * runs.norms["delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BySlottedField(Detector):
    weight: float = 1.0

    name = "by-slotted-field"
    requires = frozenset({"guidance"})
    observes = "the updates"

    def running(self, runs, references):
        return self.weight * runs.norms["delta"]


@dataclass
class Mutable(Detector):
    weight: float = 1.0

    name = "mutable"
    requires = frozenset({"guidance"})
    observes = "the updates"

    def running(self, runs, references):
        return self.weight * runs.norms["delta"]


class Everything(NamedTuple):
    """Derived from no class of the package, it defines everything itself."""

    weight: float = 1.0
    name: str = "everything"
    summary: str = ""
    source: str = ""
    use_when: str = ""
    avoid_when: str = ""
    requires: frozenset = frozenset({"guidance"})
    observes: str = "the updates"
    reads: frozenset = frozenset({"delta"})
    norms: tuple = ()
    signals: tuple = ()

    def check(self, setup):
        pass

    def describe(self):
        return f"everything(weight={self.weight})"

    def cost(self, setup):
        return 0.0

    def earliest(self, evaluations):
        return 1

    def settled(self, evaluations):
        return evaluations

    def running(self, runs, references):
        return self.weight * runs.norms["delta"]

    def score(self, runs, references):
        return self.running(runs, references)[:, -1]


@pytest.mark.parametrize(
    "kind",
    [ByConstructor, BySlots, ByProperty, ByField, BySlottedField, Mutable, Everything],
    ids=lambda kind: kind.__name__,
)
def test_a_method_can_be_written_in_any_way(kind):
    first, second = create("detector", kind), create("detector", kind(weight=2.0))
    assert first.requires == {"guidance"}
    assert first.observes == "the updates"
    assert first.describe() == f"{first.name}(weight=1.0)"
    assert second.describe() == f"{first.name}(weight=2.0)"
    assert SETUPS["Stable Diffusion"]().accepts(first)
    assert not SETUPS["Stable Diffusion without guidance"]().accepts(first)


def test_a_name_can_be_a_field_without_a_default():
    @dataclass(frozen=True)
    class Named(Detector):
        name: str

        def running(self, runs, references):
            return runs.norms["delta"]

    assert create("detector", Named("mine")).describe() == "mine()"
    with pytest.raises(UsageError, match="the class Named as detector, which cannot be made without arguments"):
        create("detector", Named)


def test_a_detector_needs_a_name_and_running_only():
    small = create("detector", Small())
    assert (small.requires, small.observes, small.summary, small.cost(None)) == (frozenset(), "small", "", 0.0)
    assert describe(small) == "small()"


def test_a_localizer_needs_a_name_and_a_map_only():
    class Constant(Localizer):
        name = "constant"

        def map(self, watched):
            return Map(torch.ones(len(watched.trajectory), 4, 4))

    made = create("localizer", Constant)
    assert (made.evaluations, made.requires, made.baseline) == ((-1,), frozenset(), "none")


def test_a_mitigation_needs_a_name_and_remake_only():
    class Nothing(Mitigation):
        name = "nothing"

        def remake(self, flagged, studio):
            return []

    made = create("mitigation", Nothing)
    assert made.correction(None) is None
    assert made.alters == frozenset()


def test_a_localizer_says_what_it_requires_by_its_baseline_unless_it_says_otherwise():
    class Compared(Localizer):
        name = "compared"
        baseline = "checkpoint"

        def map(self, watched): ...

    class Attending(Compared):
        requires = frozenset({"captions"})
        evaluations = (0, -1)

    assert Compared().requires == {"checkpoint"}
    assert Attending().requires == {"captions"}
    assert Attending().evaluations == (0, -1)


def test_a_method_without_a_name_or_without_its_function_is_told_so():
    class Nameless(Detector):
        def running(self, runs, references):
            return runs.norms["delta"]

    class Idle(Detector):
        name = "idle"

    class Numbered(Small):
        name = 5

    with pytest.raises(UsageError, match="as detector, which lacks name; define it, or give a registered name"):
        create("detector", Nameless())
    with pytest.raises(
        UsageError, match=r"the class Idle as detector, which cannot be made .*abstract method '?running"
    ):
        create("detector", Idle)
    with pytest.raises(UsageError, match="as detector, which lacks a name: it has 5"):
        create("detector", Numbered())


def test_an_object_that_is_derived_from_nothing_is_told_what_it_lacks():
    with pytest.raises(
        UsageError,
        match=r"lacks summary, source, .*, requires, .*, score, .*; derive it from cryptomnesia\.Detector, which has "
        r"defaults for the rest",
    ):
        create("detector", Plain())


def test_what_documents_a_method_is_no_setting_of_it():
    first = ByConstructor()
    first.summary = "Other words."
    first._note = "something private"
    assert first.describe() == "by-constructor(weight=1.0)"


def test_a_set_is_described_in_the_same_order_in_every_process():
    @dataclass(frozen=True)
    class Picky(Small):
        words: frozenset[str] = frozenset({"c", "a", "b"})

    assert Picky().describe() == "small(words={'a', 'b', 'c'})"


def test_a_package_that_leaves_the_process_is_an_error_like_any_other(installed):
    """`sys.exit` when a method is made must not end whoever looks at the methods."""
    sys.modules["others"].leave = sys.exit
    installed("detector", "leaving", "others:leave", "strange", "7")
    with pytest.raises(PluginError, match=r"the detector 'leaving' of the package strange 7 .*SystemExit"):
        create("detector", "leaving")
    assert "strange 7" in entries("detector")["leaving"].state


def test_an_attribute_that_fails_is_an_error_that_names_the_class_or_the_package(installed):
    class Failing(Small):
        @property
        def norms(self):
            raise TypeError("no")

    with pytest.raises(UsageError, match=r"an object of Failing as detector, which fails .*TypeError: no"):
        create("detector", Failing())
    sys.modules["others"].Failing = Failing
    installed("detector", "odd", "others:Failing", "strange", "7")
    with pytest.raises(PluginError, match=r"of the package strange 7 fails when it is looked at \(TypeError: no\)"):
        create("detector", "odd")


def test_a_detector_of_another_package_does_not_hide_the_mean_of_a_map(installed):
    sys.modules["others"].Hidden = type("Hidden", (Small,), {"name": "collapse"})
    installed("detector", "collapse", "others:Hidden", "strange", "7")
    with pytest.raises(
        UsageError, match=r"'collapse' of the package strange has the name of a localizer of cryptomnesia"
    ):
        detector("collapse")
