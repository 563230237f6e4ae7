"""The public names: what `dir` shows, what importing them loads, and that no file hides a function."""

import ast
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest

import cryptomnesia

SOURCE = Path(cryptomnesia.__file__).parent


def stub():
    """Name → module that it is loaded from, as the stub has it."""
    tree = ast.parse((SOURCE / "__init__.pyi").read_text())
    return {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


PUBLIC = stub()
"""The names that the stub declares, without the version."""


def fresh(code):
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_dir_shows_the_public_names_only():
    shown = fresh("import cryptomnesia; print(*dir(cryptomnesia))")
    assert {name for name in shown if not name.startswith("__")} == set(PUBLIC)
    assert set(cryptomnesia.__all__) == set(PUBLIC)


def test_dir_shows_no_more_after_modules_were_imported():
    shown = fresh(
        "import cryptomnesia, cryptomnesia.detection, cryptomnesia.auditing; cryptomnesia.detect; "
        "print(*dir(cryptomnesia))"
    )
    assert {name for name in shown if not name.startswith("__")} == set(PUBLIC)


@pytest.mark.parametrize(
    "verb", ["detect", "localize", "guard", "audit", "calibrate", "match", "find", "watch", "methods", "load_pipeline"]
)
def test_the_verbs_are_public_functions(verb):
    assert callable(getattr(cryptomnesia, verb))
    assert getattr(cryptomnesia, verb).__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_of_the_stub_can_be_loaded(name):
    assert getattr(cryptomnesia, name) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import cryptomnesia",
        "import cryptomnesia; dir(cryptomnesia)",
        "from cryptomnesia import Sampling",
        "from cryptomnesia import UsageError, PluginError, methods; list(methods())",
        "import cryptomnesia.settings, cryptomnesia.registry, cryptomnesia.errors",
    ],
)
def test_importing_loads_neither_torch_nor_diffusers(code):
    heavy = "{'torch', 'diffusers', 'transformers', 'scipy', 'matplotlib'}"
    assert fresh(f"{code}\nimport sys\nprint(*({heavy} & set(sys.modules)))") == []


def test_no_file_has_the_name_of_a_public_function():
    functions = {name for name in PUBLIC if not isinstance(getattr(cryptomnesia, name), type)}
    assert {"detect", "localize", "guard", "audit", "calibrate", "match", "find", "watch"} <= functions
    files = {path.stem for path in SOURCE.rglob("*.py")} | {path.name for path in SOURCE.rglob("*") if path.is_dir()}
    assert files & functions == set()
    # nor does a file at the top, whose name would be an attribute of the package, have the name of a class
    top = {path.stem for path in SOURCE.iterdir()}
    assert top & set(PUBLIC) == set()


ROOMS = (
    "detection",
    "localization",
    "guarding",
    "auditing",
    "calibration",
    "matching",
    "finding",
    "registry",
    "tracing",
)


@pytest.mark.parametrize("rooms", [ROOMS, ROOMS[::-1]])
def test_no_order_of_imports_hides_a_function(rooms):
    modules = ", ".join(f"cryptomnesia.{room}" for room in rooms)
    verbs = ["detect", "localize", "guard", "audit", "calibrate", "match", "find", "watch", "methods", "load_pipeline"]
    found = fresh(f"import {modules}\nprint(*(type(getattr(cryptomnesia, verb)).__name__ for verb in {verbs}))")
    assert found == ["function"] * len(verbs)
    # of a module that was imported by its own path, too
    paths = ", ".join(sorted({f"cryptomnesia.{PUBLIC[verb]}" for verb in verbs}))
    found = fresh(f"import {paths}\nprint(*(type(getattr(cryptomnesia, verb)).__name__ for verb in {verbs}))")
    assert found == ["function"] * len(verbs)


@pytest.mark.parametrize(("first", "second"), [*permutations(["testing", "proving_ground", "cli"], 2)])
def test_rooms_that_stand_aside_can_be_imported_in_any_order(first, second):
    found = fresh(
        f"import cryptomnesia.{first}, cryptomnesia.{second}, sys\n"
        f"print('cryptomnesia.{first}' in sys.modules, 'cryptomnesia.{second}' in sys.modules)"
    )
    assert found == ["True", "True"]


def test_tests_of_methods_load_nothing_of_the_proving_ground():
    loaded = fresh("import cryptomnesia.testing.miniatures, sys; print(*sys.modules)")
    assert not [name for name in loaded if name.startswith("cryptomnesia.proving_ground")]
