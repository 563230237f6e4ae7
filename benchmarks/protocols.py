"""How many evaluations the commands of docs/how-to/real-checkpoints.md take: docs/results/protocols.json.

    python benchmarks/protocols.py > docs/results/protocols.json

Nothing is generated: the numbers follow from the images that a command makes, the steps, and what its methods say of
their own cost. One evaluation is that of both branches for one picture, so that evaluations times the seconds of one
give the time. Decoding pictures is not counted.

`commands`: name → `images` (references and judged pictures), `evaluations` of one picture in the run, `extra`
evaluations of its methods per picture, and their `total`.
"""

from dataclasses import dataclass
from typing import Any

from common import print_json

from cryptomnesia.detectors import detector
from cryptomnesia.localizers import localizer
from cryptomnesia.mitigations import mitigation
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion

STEPS = 50
EVALUATIONS = {"pndm": STEPS + 1, "ddim": STEPS}
"""PNDM evaluates the second timestep twice."""
MEMORIZED, ORDINARY, REFERENCES = 500, 500, 450
"""Prompts of the lists, as the page takes them. Fewer are left after the labels are checked."""

DETECTORS = (
    "early-detail",
    "stability",
    "guidance-mean",
    "guidance-first",
    "sharpness",
    "anisotropy",
    "bright-ending",
)
CURVATURES = (
    "curvature",
    "curvature-difference",
    "curvature-difference-checkpoint",
    "score-difference-filtered",
    "score-difference-checkpoint",
    "bright-ending",
)


@dataclass(frozen=True)
class Command:
    """A command of the page.

    Attributes:
        solver: `pndm` or `ddim`.
        images: references and judged pictures together.
        methods: every picture is given to, as pairs of kind and name.
    """

    solver: str
    images: int
    methods: tuple[tuple[str, str], ...] = ()


ALL = REFERENCES + MEMORIZED + ORDINARY
SCORED = tuple(("detector", name) for name in DETECTORS)
MAPPED = tuple(("localizer", name) for name in CURVATURES)
DEFAULT_MAP = ("localizer", "settled-detail")
COMMANDS = {
    "calibrate": Command("pndm", REFERENCES, (DEFAULT_MAP,)),
    "guard --policy observe": Command("pndm", MEMORIZED),
    "bench detect --scheduler pndm": Command("pndm", ALL, SCORED),
    "bench detect --scheduler ddim": Command("ddim", ALL, SCORED),
    "bench localize --at -1": Command("ddim", ALL, MAPPED),
    "bench localize --localizer settled-detail": Command("ddim", ALL, (DEFAULT_MAP,)),
    "guard --policy mitigate": Command("pndm", MEMORIZED),
    "audit": Command("pndm", MEMORIZED, (DEFAULT_MAP, ("mitigation", "partial-captions"))),
}
"""As on the page. `audit` is counted as if every picture were flagged. The published rule of `guard --policy mitigate`
acts in the run itself."""


def main() -> None:
    """Count and print JSON."""
    print_json({"steps": STEPS, "commands": {name: counted(command) for name, command in COMMANDS.items()}})


def counted(command: Command) -> dict[str, Any]:
    """The evaluations of a command."""
    pipe = stable_diffusion()
    setup = Setup.of(pipe, {"num_inference_steps": STEPS, "guidance_scale": 7.5}, checkpoint=stable_diffusion())
    made: dict[str, Any] = {"detector": detector, "localizer": localizer, "mitigation": mitigation}
    extra = sum(made[kind](name, setup).cost(setup) for kind, name in command.methods)
    evaluations = EVALUATIONS[command.solver]
    total = command.images * (evaluations + extra)
    return {"images": command.images, "evaluations": evaluations, "extra": extra, "total": total}


if __name__ == "__main__":
    main()
