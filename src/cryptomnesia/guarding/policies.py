"""What a guard does about flagged images, and about those that could not be judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Mitigation, Remade, Studio, why_uncorrected, withheld


@dataclass(frozen=True)
class Open:
    """An image about which something has to be done.

    Attributes:
        flagged: the call that makes it from its own noise, and the verdict on it.
        other: attempt number, from 0 → the call that makes it from other noise.
    """

    flagged: Flagged
    other: Callable[[int], Mapping[str, Any]]


class Policy(Protocol):
    """What a guard does about images that are not clean.

    Attributes:
        name: on the command line and in messages.
        acts: whether it does anything; otherwise images are returned as they are.
        mitigates: whether it needs a mitigation.
        corrects: whether a mitigation that corrects runs does so in the user's own call.
    """

    name: ClassVar[str]
    acts: ClassVar[bool] = True
    mitigates: ClassVar[bool] = False
    corrects: ClassVar[bool] = False

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """What becomes of the images, in their order."""
        ...


@dataclass(frozen=True)
class Observe(Policy):
    """Return every image as it is, and say what was found."""

    name: ClassVar[str] = "observe"
    acts: ClassVar[bool] = False

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """Nothing: no image is open under this policy."""
        return []


@dataclass(frozen=True)
class Block(Policy):
    """Return a black image instead."""

    name: ClassVar[str] = "block"

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """All images are withheld."""
        return [Remade(withheld(image.flagged.verdict)) for image in images]


@dataclass(frozen=True)
class Mitigate(Policy):
    """Have the mitigation correct the call's own runs, or make the image again."""

    name: ClassVar[str] = "mitigate"
    mitigates: ClassVar[bool] = True
    corrects: ClassVar[bool] = True

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """What the mitigation gives; after a correction in the call itself the images are withheld."""
        assert mitigation is not None
        if mitigation.correction(studio.references) is not None:
            return [Remade(withheld(image.flagged.verdict, why_uncorrected(image.flagged.verdict))) for image in images]
        return mitigation.remake([image.flagged for image in images], studio)


@dataclass(frozen=True)
class Regenerate(Policy):
    """Make the image again with other seeds, and then under the mitigation.

    Attributes:
        retries: other seeds to try.
    """

    retries: int = 3

    name: ClassVar[str] = "regenerate"
    mitigates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject numbers that try nothing."""
        if self.retries < 1:
            raise UsageError(f"got {self.retries} retries; give at least 1, or another policy than regenerate")

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """One image after the other."""
        return [self._settle_one(image, studio, mitigation) for image in images]

    def _settle_one(self, image: Open, studio: Studio, mitigation: Mitigation | None) -> Remade:
        assert mitigation is not None
        verdict = image.flagged.verdict
        for attempt in range(1, self.retries + 1):
            output, (again,) = studio.make([image.other(attempt)])
            verdict = replace(verdict, retried=(*verdict.retried, again.p_value))
            if again.clean:
                reason = f"{verdict.reason}; seed {attempt} after it has p = {again.p_value:.3g}"
                return Remade(replace(verdict, action="regenerated", reason=reason), output)
        verdict = replace(verdict, reason=f"{verdict.reason}; {self.retries} other seeds were no better")
        return mitigation.remake([Flagged(image.other(self.retries), verdict)], studio)[0]


POLICIES: Mapping[str, type[Policy]] = {policy.name: policy for policy in (Observe, Block, Mitigate, Regenerate)}


def policy_of(policy: str | Policy) -> Policy:
    """A policy that was given by name or as an object.

    Raises:
        UsageError: for an unknown name.
    """
    if not isinstance(policy, str):
        return policy() if isinstance(policy, type) else policy
    if policy not in POLICIES:
        raise UsageError(f"got the unknown policy {policy!r}; known are {', '.join(POLICIES)}")
    return POLICIES[policy]()
