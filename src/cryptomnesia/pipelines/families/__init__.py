"""Model families: what the library has to know about a pipeline class. One file per family."""

from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.contents.identity import in_library, runs
from cryptomnesia.pipelines.families.base import Branch, Evaluation, Family, NetworkCall
from cryptomnesia.pipelines.families.network import NetworkFamily
from cryptomnesia.pipelines.inputs import Shared
from cryptomnesia.registry import OWN, entries, load

__all__ = [
    "Branch",
    "Evaluation",
    "Family",
    "NetworkCall",
    "NetworkFamily",
    "Shared",
    "check_family",
    "family_of",
    "pictures_of",
    "vouch",
]

_VOUCHED = "_cryptomnesia_family"
"""Attribute of a pipeline that holds the family that a user vouched for: a registered name, or the family's class."""


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    It is found by the pipeline's class: one of diffusers, or a subclass that runs the same `__call__`. Another class
    may order its guidance branches differently, also one with the same name; `vouch` tells its family.

    Raises:
        UsageError: for a pipeline of an unknown family, or a scheduler that does not solve the model.
    """
    vouched = getattr(pipe, _VOUCHED, None)
    if vouched is not None and not isinstance(vouched, str):
        return vouched(pipe)
    return load("family", vouched or _pipeline_class(type(pipe)))(pipe)


def pictures_of(pipe: Any) -> frozenset[str]:
    """Names of arguments of a pipeline's call that are one picture for all prompts, or one per prompt."""
    return getattr(family_of(pipe), "pictures", frozenset())


def vouch(pipe: Any, family: "str | type[Family]") -> None:
    """Say that a pipeline calls its network as the pipelines of a family do.

    This is for subclasses and research forks with a `__call__` of their own. Maps and scores are wrong if it is not
    true: the guidance branches have to come in the family's order, and the solver's `step` has to be given the guided
    prediction.

    Args:
        pipe: the pipeline.
        family: name of a family such as `stable-diffusion`, or of a pipeline class such as `StableDiffusionPipeline`;
            or the class of a family that no package has registered.

    Raises:
        UsageError: for an unknown family.
    """
    if isinstance(family, type) and issubclass(family, NetworkFamily):
        setattr(pipe, _VOUCHED, family)
        return
    if not isinstance(family, str):
        raise UsageError(f"got {family!r} as family; give a name, or a class derived from NetworkFamily")
    known = entries("family")
    named = {load("family", name).name: name for name in known} if family not in known else {}
    if family not in {*known, *named}:
        raise UsageError(f"got the unknown family {family!r}; known are {', '.join(sorted(named))}")
    setattr(pipe, _VOUCHED, named.get(family, family))


def check_family(name: str, model: str | None = None) -> None:
    """Refuse a pipeline class of an unknown family.

    Args:
        name: name of the class.
        model: name of the model whose pipeline has this class, for the message.

    Raises:
        UsageError: naming the known families, and how to add one.
    """
    if name not in entries("family"):
        subject = f"got a pipeline of the unknown family {name}"
        if model is not None:
            subject = f"{model} is a pipeline of the unknown family {name}"
        raise UsageError(
            f"{subject}; known are {', '.join(entries('family'))}. If it calls its network as one of these does, say "
            "so with `cryptomnesia.vouch`; the page 'Add a family' shows how to write another"
        )


def _pipeline_class(kind: type) -> str:
    """The registered name of a pipeline's class.

    Raises:
        UsageError: for a class of an unknown family.
    """
    import diffusers

    known = entries("family")
    for base in kind.__mro__:
        if base.__name__ not in known:
            continue
        foreign = known[base.__name__].package != OWN
        # who registers a class of another package vouches for it by name
        if not foreign and getattr(diffusers, base.__name__, None) is not base:
            continue
        known_call: Any = base.__call__  # type: ignore[attr-defined]
        if (foreign or in_library(known_call)) and runs(kind.__call__, known_call):  # type: ignore[attr-defined]
            return base.__name__
        break
    like = next((base.__name__ for base in kind.__mro__ if base.__name__ in known), None)
    if like is None:
        check_family(kind.__name__)
    raise UsageError(
        f"got a {kind.__module__}.{kind.__qualname__}, which runs another `__call__` than the {like} that is known; if "
        f"it calls its network in the same way, say so with `watch(pipe, family={like!r})` or `cryptomnesia.vouch`; if "
        "not, the page 'Add a family' shows how to write another"
    )
