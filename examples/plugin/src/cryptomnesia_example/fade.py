"""Fade: how much of the caption's pull is left.

Early in a run a caption pulls hard on any picture, because there is much to decide. Later an ordinary picture looks
like itself, with or without its caption, and the pull fades. A caption that stands for one picture goes on pulling.

With g_t the distance of the predictions with and without the caption at evaluation t, the score is log(g_t / g_1).
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia import Detector, Trajectory


@dataclass(frozen=True)
class Fade(Detector):
    """The logarithm of the guidance at the newest evaluation, relative to the first; 0 there."""

    name = "fade"
    summary = "How much of the caption's pull is left at the newest evaluation."
    source = "cryptomnesia-example"
    use_when = "You want to see the smallest useful detector."
    avoid_when = "You need a method that was measured; use `guidance-mean`."
    requires = frozenset({"guidance"})
    reads = frozenset({"guidance"})

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score of every image after each evaluation, (B, N)."""
        pull = runs.norms["guidance"].clamp_min(1e-12).log()
        return pull - pull[:, :1]
