"""The dose-response of canaries as a picture."""

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from cryptomnesia.finetuning.canaries.result import DoseResponse


def curve(measured: "DoseResponse") -> str:
    """The exposures over the repetitions as SVG: every canary, and the medians with their intervals."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(measured.doses))
    for place, dose in zip(places, measured.doses, strict=True):
        beside = place + 0.25 * np.linspace(-1, 1, len(dose.canaries) + 2)[1:-1]
        axes.plot(beside, [canary.exposure for canary in dose.canaries], "o", ms=4, color="tab:grey", alpha=0.6)
        middle = dose.exposure
        color = "tab:red" if dose.stands_out else "tab:blue"
        axes.vlines(place, middle.low, middle.high, color=color, lw=2)
        axes.plot(place, middle.value, "s", color=color)
    lines = {measured.limit: "limit of the reserve", 1.0: "median of pictures that were never shown"}
    for height, text in lines.items():
        axes.axhline(height, color="black", lw=0.8, ls=":")
        axes.annotate(text, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_xticks(places, [str(dose.repetitions) for dose in measured.doses])
    axes.set_ylim(-0.3, measured.limit * 1.08)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel("repetitions per epoch")
    axes.set_ylabel("exposure in bits (median, 95% interval)")
    text = io.StringIO()
    # the same bytes every time
    with rc_context({"svg.hashsalt": "exposure"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
