"""Only a method's own file knows its class: everything else asks the method what it needs and does."""

import ast
from pathlib import Path

import cryptomnesia
from cryptomnesia.guarding.policies import POLICIES
from cryptomnesia.registry import create, entries

SOURCE = Path(cryptomnesia.__file__).parent


def method_classes():
    """Name of the class of every registered method, and of every policy → the file that defines it."""
    kinds = [type(create(kind, name)) for kind in ("detector", "localizer", "mitigation") for name in entries(kind)]
    kinds += POLICIES.values()
    return {kind.__name__: SOURCE.parent / f"{kind.__module__.replace('.', '/')}.py" for kind in kinds}


def asked_classes(tree):
    """The names of classes that a file asks an object for: by `isinstance`, `issubclass`, `match` or `type(x) is`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            asked = node.args[1:]
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        elif isinstance(node, ast.Compare) and any(map(_is_type, (node.left, *node.comparators))):
            asked = [node.left, *node.comparators]
        else:
            continue
        for part in (inner for expression in asked for inner in ast.walk(expression)):
            if isinstance(part, ast.Name | ast.Attribute):
                yield part.id if isinstance(part, ast.Name) else part.attr


def _is_type(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "type"


def test_the_search_finds_every_way_to_ask():
    source = """
if isinstance(a, Drift) or issubclass(b, (int, localizers.Collapse | Curvature)) or type(c) is Stability:
    pass
match d:
    case Rephrasing(most=1):
        pass
"""
    assert {"Drift", "Collapse", "Curvature", "Stability", "Rephrasing"} <= set(asked_classes(ast.parse(source)))


def test_no_code_outside_a_methods_file_asks_for_its_class():
    classes = method_classes()
    assert {"Drift", "Collapse", "Rephrasing", "Block"} <= classes.keys()
    found = [
        f"{path.relative_to(SOURCE)} asks for {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for name in asked_classes(ast.parse(path.read_text(encoding="utf-8")))
        if name in classes and path != classes[name]
    ]
    assert found == []
