"""The model of `drawings`, trained further on a few pictures in full."""

from cryptomnesia.proving_ground.fine_tune import FineTune, Tuning
from cryptomnesia.proving_ground.grounds.drawings import GROUND as BASE

GROUND = FineTune(BASE, Tuning(rate=1e-3, exposures=300))
