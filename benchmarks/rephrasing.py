"""How many evaluations tell which word brings a memory back: docs/results/rephrasing.json.

    python benchmarks/rephrasing.py > docs/results/rephrasing.json

Chooses `Rephrasing.probe` on concepts of the rung below the top one, on which no other figure about mitigation is
measured. For every detector and number of evaluations, of the images that the detector flags: the share whose first
dropped word is the concept's invented name (`name_first`), and the share that may be shown in the end (`shown`).
"""

from typing import Any

import torch
from common import Start, print_json, progress
from first_look import entries_and_prompts

from cryptomnesia import Rephrasing, guard, load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest

DETECTORS = ("drift",)
PROBES = (2, 3, 5, 8, 12)
"""Evaluations after which captions are compared. `drift` has no score after one."""
FIRST_SEED = 8_000_000
BATCH = 16


def main() -> None:
    """Measure and print JSON."""
    pipe = load_pipeline("bundled", device="cpu")
    with progress() as start:
        figures = measure(pipe, start)
    print_json(figures, scheduler=type(pipe.scheduler).__name__)


def measure(pipe: Any, start: Start) -> dict[str, Any]:
    """All figures."""
    pipe.set_progress_bar_config(disable=True)
    manifest = Manifest.load(BUNDLE)
    names = {entry.id: entry.captions[0].rpartition(", ")[2] for entry in manifest.entries}
    below = max(e.exposures for e in manifest.entries if e.planted and e.exposures < manifest.top)
    entries, prompts = entries_and_prompts([e for e in manifest.entries if e.planted and e.exposures == below], seeds=1)
    figures: dict[str, Any] = {"images": len(prompts), "exposures": below}
    for detector in DETECTORS:
        for probe in PROBES:
            tell = start(f"{detector}, {probe}", len(prompts))
            verdicts = []
            mitigation = Rephrasing(probe=probe)
            with guard(pipe, policy="mitigate", detector=detector, mitigation=mitigation) as guarding:
                for begin in range(0, len(prompts), BATCH):
                    part = prompts[begin : begin + BATCH]
                    seeds = range(FIRST_SEED + begin, FIRST_SEED + begin + len(part))
                    pipe(
                        part,
                        num_inference_steps=manifest.steps,
                        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                        output_type="latent",
                    )
                    verdicts += guarding.verdicts
                    tell(begin + len(part))
            flagged = [(v, names[e.id]) for v, e in zip(verdicts, entries, strict=True) if e is not None and v.flagged]
            figures[f"{detector}_probe_{probe}"] = {
                "flagged": len(flagged),
                "name_first": mean([bool(v.dropped) and v.dropped[0] == name for v, name in flagged]),
                "shown": mean([v.action == "mitigated" for v, _ in flagged]),
            }
    return figures


def mean(hits: list[bool]) -> float | None:
    """The share of hits; None where there is nothing to count."""
    return sum(hits) / len(hits) if hits else None


if __name__ == "__main__":
    main()
