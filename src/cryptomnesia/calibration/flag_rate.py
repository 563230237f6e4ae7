"""Whether the share of flagged images is still the one that a calibration promises.

An image is flagged if its p-value is at most the false-positive rate a. Against a null of n scores that means: at most
k - 1 of them are as high, where k is the whole part of a·(n + 1). So for ordinary images the probability q of a flag
depends on the n references that were drawn. Its mean is k/(n + 1), and its distribution is Beta(k, n + 1 - k). With 300
scores and a rate of 1% a service flags between 0.2% and 2.4% of its ordinary images, with a probability of 95%. Given
q, the number of flags among W images is binomial, so without knowing q it is beta-binomial.

A service looks at its newest W images after every image, and a bound that holds for one look would be passed sooner
or later. The bounds here hold for all looks at T images together. Given q, some window has c flagged images or more
only if the first one has, or if the count rises from c - 1 to c: a flagged image arrives, and the one that leaves is
not flagged. With the union bound over T - W such moments the chance is at most

    min(1, P(B(W, q) ≥ c) + (T - W)·q·(1 - q)·P(B(W - 1, q) = c - 1)),

where B is binomial. For c flagged images or fewer it is min(1, P(B(W, q) ≤ c) + (T - W)·q·(1 - q)·P(B(W - 1, q) = c)).
Both are then averaged over the distribution of q. The minimum is taken before: all windows have the same q, so a large
q is one misfortune, and not a new one at every look. With T = W this is the beta-binomial tail itself.
"""

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Literal

import numpy as np
from scipy.stats import beta, binom

from cryptomnesia.errors import UsageError
from cryptomnesia.statistics import flagged_ranks
from cryptomnesia.tracing.generation import whole_number
from cryptomnesia.verdicts import Verdict

_POINTS = 2**13
"""Values of the rate q over which a mean is taken; the mean is at most 1/`_POINTS` too large, and never too small."""


class FlagRate:
    """Watches the share of flagged images while a service runs.

    For images of prompts like the references, the chance of any false warning among `images` images is at most `level`,
    and among m times as many at most m times `level`. Every image counts, also several of one prompt. So a client that
    asks again and again for what is flagged causes a warning, too. Several threads may share one.

    Attributes:
        window: number of newest images that are looked at.
        lowest: smallest number of flagged images among them that is as promised; 0 if no number is too small to be so.
        highest: largest such number.

    Example:
        rate = FlagRate(len(calibration.others), fpr=0.01)
        for verdict in guarding.verdicts:
            if warning := rate.seen(verdict):
                logger.warning(warning)
    """

    def __init__(
        self, null: int, fpr: float = 0.01, *, window: int = 1000, level: float = 0.01, images: int = 1_000_000
    ) -> None:
        """Compute the bounds; that takes a part of a second.

        Args:
            null: number of scores in the null of the calibration, `len(calibration.others)`.
            fpr: false-positive rate at which images are flagged.
            window: number of newest images that are looked at.
            level: chance of a false warning, in (0, 1).
            images: the number of images among which it is at most `level`.

        Raises:
            UsageError: for a number that is not possible, or a null that is too small for the rate.
        """
        self.window = whole_number("window", window)
        images = whole_number("images", images)
        if self.window < 1 or images < self.window:
            raise UsageError(f"got a window of {self.window} of {images} images; give 1 ≤ window ≤ images")
        if not 0 < level < 1:
            raise UsageError(f"got the level {level:g}; give one between 0 and 1")
        ranks = flagged_ranks(null, fpr)
        self.lowest, self.highest = _bounds(ranks, null, self.window, level / 2, images)
        self._fpr = fpr
        self._newest: deque[bool] = deque(maxlen=self.window)
        self._count = 0
        # images since the last warning on either side
        self._since = {"many": self.window, "few": self.window}
        self._lock = Lock()

    @property
    def seen_images(self) -> int:
        """The number of images in the window, at most `window`."""
        return len(self._newest)

    @property
    def flagged(self) -> int:
        """How many of them are flagged."""
        return self._count

    @property
    def state(self) -> Literal["as promised", "many", "few"]:
        """Whether that are too many or too few; too few can only be said of a full window."""
        if self._count > self.highest:
            return "many"
        return "few" if len(self._newest) == self.window and self._count < self.lowest else "as promised"

    def seen(self, verdict: Verdict) -> str | None:
        """Take note of an image, and say if too many or too few are flagged.

        Args:
            verdict: on the image; one that could not tell does not count.

        Returns:
            One line, else None. The same is not said again before `window` further images.
        """
        if not (verdict.flagged or verdict.clean):
            return None
        with self._lock:
            if len(self._newest) == self.window:
                self._count -= self._newest[0]
            self._newest.append(verdict.flagged)
            self._count += verdict.flagged
            self._since = {side: images + 1 for side, images in self._since.items()}
            state = self.state
            if state == "as promised" or self._since[state] < self.window:
                return None
            self._since[state] = 0
            return self._warning(state)

    def _warning(self, state: Literal["many", "few"]) -> str:
        found = f"{self._count} of the newest {len(self._newest)} images are flagged"
        if state == "many":
            return (
                f"{found}, and at a false-positive rate of {self._fpr:g} at most {self.highest} of {self.window} would "
                "be: many prompts are memorized, or prompts or model are no longer those of the calibration; look at "
                "the flagged prompts, and calibrate again if they are ordinary"
            )
        return (
            f"{found}, and at a false-positive rate of {self._fpr:g} at least {self.lowest} of {self.window} would be: "
            "prompts or model are no longer those of the calibration; calibrate again"
        )


def _bounds(ranks: int, null: int, window: int, share: float, images: int) -> tuple[int, int]:
    """The smallest and the largest count that is as promised.

    Args:
        ranks: k, the number of ranks that are flagged.
        null: n, the number of scores in the null.
        window: W, the number of images in a window.
        share: chance of a false warning on either side, at most.
        images: T, the number of images among which it holds.
    """
    lowest = _first(lambda count: chance_of_few(count, ranks, null, window, images) > share, window)
    highest = _first(lambda count: chance_of_many(count + 1, ranks, null, window, images) <= share, window)
    return lowest, highest


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest count in 0 … `most` for which a condition holds that all larger counts meet as well."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def chance_of_many(count: int, ranks: int, null: int, window: int, images: int) -> float:
    """Bound of the chance that any window among ordinary images has `count` flagged ones or more.

    Args:
        count: c.
        ranks: k, the number of ranks that are flagged.
        null: n, the number of scores in the null.
        window: W, the number of images in a window.
        images: T, the number of images.
    """
    # the chance itself rises with the rate, so its bound at the upper end of a step is one for the whole step
    rates = beta.ppf(np.arange(1, _POINTS + 1) / _POINTS, ranks, null + 1 - ranks)
    moments = (images - window) * rates * (1 - rates) * binom.pmf(count - 1, window - 1, rates)
    return float(np.minimum(1, binom.sf(count - 1, window, rates) + moments).mean())


def chance_of_few(count: int, ranks: int, null: int, window: int, images: int) -> float:
    """Bound of the chance that any full window among ordinary images has `count` flagged ones or fewer.

    Arguments as for `chance_of_many`.
    """
    # the chance falls with the rate, so the lower end counts
    rates = beta.ppf(np.arange(_POINTS) / _POINTS, ranks, null + 1 - ranks)
    moments = (images - window) * rates * (1 - rates) * binom.pmf(count, window - 1, rates)
    return float(np.minimum(1, binom.cdf(count, window, rates) + moments).mean())
