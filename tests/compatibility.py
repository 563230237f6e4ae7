"""What works with what: every family with every solver that solves its model."""

from inspect import signature
from typing import Any
from unittest import SkipTest

import diffusers
import torch

from cryptomnesia import CryptomnesiaError
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing import CheckError, check_family
from family_cases import CASES as FIRST
from family_cases import FLOWS, MORE, known_failures
from solvers import SOLVERS

CASES = {**FIRST, **MORE, **FLOWS}
"""All families."""

FEW = ("DDIM", "DPM++ 2M Karras", "Euler", "Heun", "PNDM", "UniPC")
"""Solvers that are tried with every family of UNets; all of them are tried with one."""

FLOW = {
    "Flow Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "DPM++ 2M, flow": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
    "UniPC, flow": ("UniPCMultistepScheduler", {"use_flow_sigmas": True}),
    "DEIS, flow": ("DEISMultistepScheduler", {"use_flow_sigmas": True}),
}
"""Solvers of rectified flow by name."""

CONSISTENCY = {"LCM": ("LCMScheduler", {}), "TCD": ("TCDScheduler", {})}
"""Solvers of models that jump to the picture."""

OTHERS = {
    "SA-Solver": ("SASolverScheduler", {}),
    "Euler, continuous σ": ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
    **CONSISTENCY,
}
"""Solvers that are observed and not steered."""


def solvers_for(name: str) -> list[str]:
    """The names of the solvers that are tried with a family case."""
    family: Any = family_of(CASES[name].make())
    if family.flow:
        return list(FLOW)
    if family.distilled:
        return list(CONSISTENCY)
    if not family.conditional:
        # pipelines without captions are made for one solver each
        return ["own"]
    return [*SOLVERS, *OTHERS] if name == "sd-epsilon" else list(FEW)


def outcomes(name: str, solver: str) -> dict[str, str]:
    """Verb → `works`, or why not, of a family case with a solver.

    A failed check is `wrong: …`, and what diffusers or this library refuse is `refused: …`.
    """
    found: dict[str, str] = {}
    try:
        _generate(setup(name, solver))
    except CryptomnesiaError as error:
        return dict.fromkeys(
            ("watch", "localize", "detect", "audit", "mitigate"), " ".join(f"refused: {error}".split())
        )
    # some pipelines cannot call some solvers, with any exception, also without this library
    except Exception as error:
        reason = " ".join(f"refused: the pipeline fails with it: {type(error).__name__}: {error}".split())
        return dict.fromkeys(("watch", "localize", "detect", "audit", "mitigate"), reason)
    for check in check_family(lambda: setup(name, solver)):
        verb = check.name.partition(":")[0]
        try:
            check()
            outcome = "works"
        except SkipTest as skipped:
            outcome = f"refused: {skipped}"
        except CheckError as error:
            known = known_failures(name).get(check.name)
            outcome = f"wrong: {check.name}: {error}" if known is None else f"refused: {known}"
        # diffusers raises this for a scheduler that the pipeline does not take
        except (CryptomnesiaError, ValueError) as error:
            outcome = f"refused: {error}"
        if found.get(verb, "works") == "works":
            found[verb] = " ".join(outcome.split())
    return found


def _generate(setup: Setup) -> None:
    """Make one image, with nothing attached to the pipeline."""
    setup.pipe(**setup.family.arguments(["a red circle"], setup.sampling), generator=[torch.Generator().manual_seed(0)])


def setup(name: str, solver: str) -> Setup:
    """A family case with a solver in the place of its own."""
    case = CASES[name]
    pipe = case.make()
    kind, options = {**SOLVERS, **OTHERS, **FLOW}.get(solver, (None, {}))
    if kind is not None:
        made = getattr(diffusers, kind)
        more: dict[str, Any] = {"clip_sample": False} if "clip_sample" in signature(made).parameters else {}
        if options.get("use_flow_sigmas"):
            more["prediction_type"] = "flow_prediction"
        pipe.scheduler = made.from_config(pipe.scheduler.config, **{**more, **options})
    eta = {"eta": 1.0} if "η" in solver else {}
    return Setup.of(pipe, {**case.call, **eta})
