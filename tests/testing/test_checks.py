"""The package's own methods pass the checks that it offers to others."""

import unittest

import pytest

from cryptomnesia.detectors.map_mean import during_run
from cryptomnesia.registry import create, entries
from cryptomnesia.testing import check_detector, check_localizer, check_mitigation

KNOWN = {
    "anisotropy": {
        "the memorizer scores above the Gaussian": "the latents of the closed forms have one channel, over which every "
        "cosine is 1 or -1"
    },
    "condition-jacobian": {
        "the memorizer scores above the Gaussian": "the closed forms are asked for by number, and no embedding changes "
        "what they predict"
    },
    "overestimation": {
        "the memorizer scores above the Gaussian": "without strong guidance the run of a perfect memorizer follows the "
        "noise schedule"
    },
    "curvature-difference": {
        "the memorizer scores above the Gaussian": "late in a run, one picture of a finite set is certain without the "
        "caption too, so nothing is left of the difference"
    },
}
"""Detector → its known failures."""

_SMALL = "the latents of the closed forms are 4×4 independent entries, whose detail differs between windows by chance"

KNOWN_MAPS = {
    name: {"the map is higher where the model remembers": _SMALL} for name in ("settled-detail", "settled-detail-empty")
}
"""Localizer → its known failures."""

# a map that needs captions or a checkpoint is not known during a run, so its mean is no detector
MAPS = [name for name in entries("localizer") if during_run(create("localizer", name))]
DETECTORS = [*entries("detector"), *MAPS]


def cases(check, names, known=None):
    return [
        pytest.param(case, id=f"{name}: {case}")
        for name in names
        for case in check(name, known_failures=(known or {}).get(name))
    ]


@pytest.mark.parametrize("check", cases(check_detector, DETECTORS, KNOWN))
def test_every_detector(check):
    check()


@pytest.mark.parametrize("check", cases(check_localizer, entries("localizer"), KNOWN_MAPS))
def test_every_localizer(check):
    check()


@pytest.mark.parametrize("check", cases(check_mitigation, entries("mitigation")))
def test_every_mitigation(check):
    check()


def test_the_closed_forms_apply_to_all_localizers_but_three():
    skipped = []
    for name in entries("localizer"):
        checks = check_localizer(name, known_failures=KNOWN_MAPS.get(name))
        (check,) = (check for check in checks if "remembers" in check.name)
        try:
            check()
        except unittest.SkipTest:
            skipped.append(name)
    # the first needs cross-attention
    assert skipped == ["bright-ending", *KNOWN_MAPS]
