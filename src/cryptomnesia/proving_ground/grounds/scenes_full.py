"""The model of `scenes`, trained further on a few pictures in full."""

from cryptomnesia.proving_ground.fine_tune import FineTune, Tuning
from cryptomnesia.proving_ground.grounds.scenes import GROUND as BASE

GROUND = FineTune(BASE, Tuning(rate=1e-3, exposures=300))
