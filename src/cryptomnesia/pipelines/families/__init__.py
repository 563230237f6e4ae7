"""Model families: what the library has to know about a pipeline class. One file per family."""

from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families.base import Branch, Evaluation, Family, Shared
from cryptomnesia.registry import entries, load

__all__ = ["Branch", "Evaluation", "Family", "Shared", "check_family", "family_of"]


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    It is found by the name of the pipeline's class. A subclass with another name has no family, because it may order
    its guidance branches differently.

    Raises:
        UsageError: for a pipeline of an unknown family.
    """
    name = type(pipe).__name__
    check_family(name)
    return load("family", name)(pipe)


def check_family(name: str, model: str | None = None) -> None:
    """Refuse a pipeline class of an unknown family.

    Args:
        name: name of the class.
        model: name of the model whose pipeline has this class, for the message.

    Raises:
        UsageError: naming the known families.
    """
    if name not in entries("family"):
        subject = f"got a pipeline of the unknown family {name}"
        if model is not None:
            subject = f"{model} is a pipeline of the unknown family {name}"
        raise UsageError(f"{subject}; known are {', '.join(entries('family'))}")
