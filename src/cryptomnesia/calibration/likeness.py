"""Whether prompts are like the reference prompts. If they are not, the p-values of their images may not hold.

Three things are compared: the number of words, the share of words that no reference has, and the scores. Each is a
Kolmogorov-Smirnov test of the prompts against the references. A difference is reported if it is significant at `LEVEL`
and visible: the two distribution functions are at least `VISIBLE` apart, and the median lengths differ by a factor of
`LONGER`, or the mean shares by `UNKNOWN`. For prompts that are exchangeable with the references, the chance of a false
report is at most `LEVEL` per comparison, so at most 0.3% for a run of prompts.

The words of a prompt are compared with those of all references, the words of a reference with those of the others. For
the scores the p-values suffice: the test depends on ranks only, and a p-value is the rank of a score in the null.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from cryptomnesia.calibration.captions import Captions, text_hash
from cryptomnesia.calibration.stored import Calibration

FEWEST = 20
"""The smallest number of prompts whose distribution is compared."""

MOST = 640
"""The number of newest prompts that a guard compares at most."""

LEVEL = 0.001
"""Chance of a false report in one comparison, at most."""

VISIBLE = 0.3
"""Distance of two distribution functions, in [0, 1], from which a difference is reported."""

LONGER = 1.25
"""Ratio of the median lengths from which a difference is reported."""

UNKNOWN = 0.1
"""Difference of the mean shares of unknown words from which it is reported."""

_FIX = "so p-values may not hold; calibrate on prompts like these"


Reasons = dict[str, str]
"""What differs (`overlap`, `length`, `vocabulary` or `scores`) → the difference in a sentence, with what to do."""


def texts_unlike(prompts: Sequence[str], references: Captions) -> Reasons:
    """How prompts differ visibly from the reference prompts; empty if they do not.

    Args:
        prompts: the prompts, each of which counts once.
        references: the captions of a calibration.
    """
    if not references.worded:
        return {}
    captions = Captions.of(list({text_hash(prompt): prompt for prompt in prompts}.values()))
    reasons = {}
    if both := int(captions.among(references).sum()):
        reasons["overlap"] = (
            f"{both} of {len(captions)} prompts are references of the calibration, so their p-values do not hold; "
            "judge other prompts, or calibrate on others"
        )
    lengths, usual = captions.lengths.numpy(), references.lengths.numpy()
    if _differ(lengths, usual):
        few, many = sorted((float(np.median(lengths)), float(np.median(usual))))
        if many >= LONGER * few:
            reasons["length"] = (
                f"the prompts have {np.median(lengths):g} words at the median and the references "
                f"{np.median(usual):g}, {_FIX}"
            )
    foreign, common = captions.foreign(references), references.foreign()
    if _differ(foreign, common) and foreign.mean() >= common.mean() + UNKNOWN:
        reasons["vocabulary"] = (
            f"{foreign.mean():.0%} of the words of a prompt are in no reference, and {common.mean():.0%} of the words "
            f"of a reference in no other, {_FIX}"
        )
    return reasons


def scores_unlike(p_values: Sequence[float], null: int) -> Reasons:
    """How the scores of images differ visibly from those of the null; empty if they do not.

    Args:
        p_values: of independent images, so one image per prompt; NaN where there is none.
        null: the number of scores in the null.
    """
    known = np.array([p_value for p_value in p_values if not math.isnan(p_value)])
    if not _differ(known, np.arange(1, null + 1) / (null + 1)):
        return {}
    return {
        "scores": f"the p-values of {len(known)} prompts are {np.median(known):.2g} at the median, and those of "
        "prompts like the references 0.5: either many prompts are memorized, or they are of another kind than the "
        f"references, {_FIX}"
    }


def _differ(values: np.ndarray, usual: np.ndarray) -> bool:
    """Whether two samples differ significantly and visibly."""
    if len(values) < FEWEST or len(usual) < FEWEST:
        return False
    found: Any = ks_2samp(values, usual, method="asymp")
    return bool(found.pvalue <= LEVEL and found.statistic >= VISIBLE)


class Likeness:
    """Compares the prompts of a service with the references of its calibration, while the service runs.

    The newest `MOST` different prompts are compared when `FEWEST` of them were seen, whenever their number has doubled,
    and after every `MOST` further ones. What was reported once is not reported again. Several threads may share one.

    Example:
        likeness = Likeness(calibration)
        if warning := likeness.seen(prompts, p_values):
            logger.warning(warning)
    """

    def __init__(self, calibration: Calibration) -> None:
        """Compare prompts with the references of a calibration."""
        self._references = calibration.captions
        self._null = len(calibration.others)
        # hash → prompt and p-value of its first image, the newest last; without captions every image counts
        self._newest: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._count = 0
        self._next = FEWEST
        self._told: set[str] = set()
        self._lock = Lock()

    def seen(self, prompts: Sequence[str | None], p_values: Sequence[float]) -> str | None:
        """Take note of images, and say how their prompts differ from the references if they do so visibly.

        Args:
            prompts: one per image; None where it is not known in words.
            p_values: of the images as they were first generated; NaN where there is none.

        Returns:
            One line if there is something new to say, else None.
        """
        with self._lock:
            for prompt, p_value in zip(prompts, p_values, strict=True):
                self._note(prompt, p_value)
            return None if self._count < self._next else self._compared()

    def _compared(self) -> str | None:
        """What is new to say of the newest prompts."""
        self._next = self._count * 2 if self._count < MOST else self._count + MOST
        texts = [text for text, _ in self._newest.values() if text]
        scores = [p_value for _, p_value in self._newest.values()]
        found = texts_unlike(texts, self._references) | scores_unlike(scores, self._null)
        new = found.keys() - self._told
        self._told |= new
        return "; ".join(found[kind] for kind in sorted(new)) or None

    def _note(self, prompt: str | None, p_value: float) -> None:
        """Take note of an image, unless an image of its prompt is there already."""
        if prompt is None and self._references.worded:
            return
        key = text_hash(prompt or "") if self._references.worded else self._count
        if key in self._newest:
            return
        self._newest[key] = (prompt or "", p_value)
        self._count += 1
        if len(self._newest) > MOST:
            self._newest.popitem(last=False)
