"""What a guard does about flagged images, and about images that could not be judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Mitigation, Remade, Studio, why_uncorrected, withheld
from cryptomnesia.registry import create
from cryptomnesia.verdicts import Verdict

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class Open:
    """An image that is not clean, and that a policy has to decide about.

    Attributes:
        flagged: the call that makes it from the noise that it had, and the verdict on it.
        other: number of an attempt, from 0 → the call that makes the image from other noise.
    """

    flagged: Flagged
    other: Callable[[int], Mapping[str, Any]]


class Policy(Protocol):
    """What a guard does about images that are not clean: flagged ones, and those that could not be judged.

    Subclass this protocol: then `name` and `settle` are all that a policy has to define.

    Attributes:
        name: of the policy, for messages.
        acts: whether the policy changes what is returned; if not, `settle` is never called.
        mitigates: whether the policy needs a mitigation.
        corrects: whether a mitigation that corrects runs does so in the user's own call.
    """

    name: ClassVar[str]
    acts: ClassVar[bool] = True
    mitigates: ClassVar[bool] = False
    corrects: ClassVar[bool] = False

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """Decide what becomes of the images of one call that are not clean.

        Args:
            images: those images.
            studio: makes images with the guarded pipeline and judges them.
            mitigation: of the guard; None unless the policy asks for one by `mitigates`.

        Returns:
            One result for every image, in their order; `Remade(withheld(verdict))` for an image that is not to be
            returned.
        """
        ...

    def cost(self, setup: "Setup", mitigation: Mitigation | None) -> float:
        """Evaluations of the denoiser for an image that is not clean, beyond those that made it, at most."""
        return 0.0 if mitigation is None else mitigation.cost(setup)


@dataclass(frozen=True)
class Observe(Policy):
    """Return every image as it is; only the verdicts tell what was found."""

    name: ClassVar[str] = "observe"
    acts: ClassVar[bool] = False

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """Nothing: under this policy no image waits for a decision."""
        return []


@dataclass(frozen=True)
class Block(Policy):
    """Return a black image in place of one that is not clean."""

    name: ClassVar[str] = "block"

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """Withhold all images, so that black ones are returned."""
        return [Remade(withheld(image.flagged.verdict)) for image in images]


@dataclass(frozen=True)
class Mitigate(Policy):
    """Have the mitigation correct the runs of the user's call or, if it makes images again, make them again."""

    name: ClassVar[str] = "mitigate"
    mitigates: ClassVar[bool] = True
    corrects: ClassVar[bool] = True

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """Make images again; those that a correction left flagged are withheld."""
        assert mitigation is not None
        if mitigation.correction(studio.references) is not None:
            return [Remade(withheld(image.flagged.verdict, why_uncorrected(image.flagged.verdict))) for image in images]
        return _by("mitigation", mitigation.remake([image.flagged for image in images], studio))


@dataclass(frozen=True)
class Regenerate(Policy):
    """Make the image again with other seeds and, if none gives a clean image, under the mitigation.

    Attributes:
        retries: the number of other seeds to try.
    """

    retries: int = 3

    name: ClassVar[str] = "regenerate"
    mitigates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a number of retries below 1."""
        if self.retries < 1:
            raise UsageError(f"got {self.retries} retries; give at least 1, or another policy than regenerate")

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """Make the images again, one after the other."""
        return [self._settle_one(image, studio, mitigation) for image in images]

    def cost(self, setup: "Setup", mitigation: Mitigation | None) -> float:
        """All other seeds, and then the mitigation."""
        return self.retries * setup.sampling.steps + super().cost(setup, mitigation)

    def _settle_one(self, image: Open, studio: Studio, mitigation: Mitigation | None) -> Remade:
        assert mitigation is not None
        verdict = image.flagged.verdict
        for attempt in range(1, self.retries + 1):
            output, (again,) = studio.make([image.other(attempt)])
            verdict = replace(verdict, retried=(*verdict.retried, again.p_value))
            if again.clean:
                reason = f"{verdict.reason}; seed {attempt} after it has p = {again.p_value:.3g}"
                return Remade(replace(verdict, action="regenerated", reason=reason), output, step="another seed")
        verdict = replace(verdict, reason=f"{verdict.reason}; {self.retries} other seeds were no better")
        again = mitigation.remake([Flagged(image.other(self.retries), verdict)], studio)
        return _by("mitigation of another seed", again)[0]


@dataclass(frozen=True)
class Escalate(Policy):
    """Try one thing after the other until the image is clean, and withhold it if nothing helps.

    The steps are: the mitigation; a stronger setting of it, if it has one; the mitigation from other noise; and, only
    if that is allowed, `rephrasing`. The verdict's reason says what every step came to.

    Attributes:
        rephrase: whether words of the prompt may be left out for good, as the last resort.
    """

    rephrase: bool = False

    name: ClassVar[str] = "escalate"
    mitigates: ClassVar[bool] = True

    def settle(self, images: Sequence[Open], studio: Studio, mitigation: Mitigation | None) -> list[Remade]:
        """Take the steps, each for all images that are left."""
        assert mitigation is not None
        steps = self._steps(mitigation)
        verdicts = {row: image.flagged.verdict for row, image in enumerate(images)}
        done: dict[int, Remade] = {}
        for what, method, other in steps:
            rows = [row for row in verdicts if row not in done]
            if not rows:
                break
            flagged = [
                Flagged(images[row].other(1) if other else images[row].flagged.call, _told(verdicts[row], what))
                for row in rows
            ]
            for row, remade in zip(rows, method.remake(flagged, studio), strict=True):
                if remade.output is not None:
                    done[row] = replace(remade, step=what or "mitigation")
                else:
                    reason = remade.verdict.reason.removesuffix("; withheld")
                    verdicts[row] = replace(remade.verdict, action="none", reason=reason)
        return [done.get(row) or Remade(withheld(verdict)) for row, verdict in verdicts.items()]

    def cost(self, setup: "Setup", mitigation: Mitigation | None) -> float:
        """The cost of all steps, for an image that is flagged after every one but the last."""
        return 0.0 if mitigation is None else sum(method.cost(setup) for _, method, _ in self._steps(mitigation))

    def _steps(self, mitigation: Mitigation) -> list[tuple[str, Mitigation, bool]]:
        """What every step is called, its mitigation, and whether it begins from other noise."""
        steps = [("", mitigation, False), ("another seed", mitigation, True)]
        if (stronger := mitigation.stronger) is not None:
            steps.insert(1, ("a stronger setting", stronger, False))
        if self.rephrase:
            steps.append(("fewer words", create("mitigation", "rephrasing"), False))
        return steps


def _told(verdict: Verdict, step: str) -> Verdict:
    """A verdict whose reason names the step that follows."""
    return replace(verdict, reason=f"{verdict.reason}; {step}") if step else verdict


def _by(step: str, remade: list[Remade]) -> list[Remade]:
    """Results with the step of the policy that made an image; nothing made those that are withheld."""
    return [one if one.output is None else replace(one, step=step) for one in remade]


_POLICIES = (Observe, Block, Mitigate, Regenerate, Escalate)

POLICIES: Mapping[str, type[Policy]] = {policy.name: policy for policy in _POLICIES}
"""The policies that can be given by name."""


def policy_of(policy: str | type[Policy] | Policy) -> Policy:
    """A policy that was given by name, as a class or as an object.

    Raises:
        UsageError: for an unknown name, or an object that is no policy.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise UsageError(f"got the unknown policy {policy!r}; known are {', '.join(POLICIES)}")
        return POLICIES[policy]()
    made = policy() if isinstance(policy, type) else policy
    if missing := [
        name for name in ("name", "acts", "mitigates", "corrects", "settle", "cost") if not hasattr(made, name)
    ]:
        raise UsageError(
            f"got {policy!r} as policy, which lacks {', '.join(missing)}; give {', '.join(POLICIES)}, or an object of "
            "a subclass of `cryptomnesia.Policy`"
        )
    return made
