"""The methods pass the checks that cryptomnesia has for any method."""

import pytest

from cryptomnesia.testing import check_detector, check_localizer, check_mitigation
from cryptomnesia_example.agreement import Agreement
from cryptomnesia_example.early_answer import EarlyAnswer
from cryptomnesia_example.fade import Fade
from cryptomnesia_example.reorder import Reorder
from cryptomnesia_example.turn import Turn


@pytest.mark.parametrize("check", check_detector(Fade()), ids=str)
def test_fade(check):
    check()


@pytest.mark.parametrize("check", check_detector(Turn()), ids=str)
def test_turn(check):
    check()


@pytest.mark.parametrize("check", check_detector(EarlyAnswer()), ids=str)
def test_early_answer(check):
    check()


@pytest.mark.parametrize("check", check_localizer(Agreement()), ids=str)
def test_agreement(check):
    check()


@pytest.mark.parametrize("check", check_mitigation(Reorder()), ids=str)
def test_reorder(check):
    check()
