"""What users of the example package do with it, in a process of its own; prints what came of it as JSON.

Run with the package on the path: `python plugin_session.py FOLDER`. The folder is for files. Run as
`python plugin_session.py FOLDER later` without the package, it reads what the first run stored.
"""

import json
import sys
from pathlib import Path

import torch

from cryptomnesia import (
    Calibration,
    UsageError,
    audit,
    calibrate,
    detect,
    guard,
    localize,
    methods,
)
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store
from cryptomnesia.report.html import html
from cryptomnesia.report.markdown import model_card
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion

CAPTIONS = ["a red circle 200", "a red circle 300"]
"""Like the references, so about half of the images are flagged at a rate of one half."""
EACH = 6
"""Images of every caption."""
PACKAGE = "cryptomnesia-example"


def refusal(action):
    """The message of the UsageError that an action ends with, "" if it ends well."""
    try:
        action()
    except UsageError as error:
        return str(error)
    return ""


def counted(pipe):
    """A list with the number of evaluations that the pipeline's network makes from now on."""
    calls = [0]

    def count(*_):
        calls[0] += 1

    # it changes no picture
    count.cryptomnesia_fingerprint = ""
    pipe.unet.register_forward_hook(count)
    return calls


def verdicts(findings):
    return [
        {
            "detector": finding.verdict.detector,
            "p_value": finding.verdict.p_value,
            "flagged": finding.verdict.flagged,
            "action": finding.verdict.action,
            "maps": {}
            if finding.located is None
            else {name: [*one.shape] for name, one in finding.located.maps.items()},
            "instead": finding.instead is not None,
        }
        for finding in findings
    ]


def use(folder):
    """All verbs with the methods of the package, by name."""
    pipe = stable_diffusion()
    done = {
        "methods": [
            [entry.kind, entry.name, entry.version, entry.state] for entry in methods() if entry.package == PACKAGE
        ]
    }

    # a calibration that was made before the package was installed knows nothing of its norms and signals
    calibrate(pipe, PROMPTS, batch_size=34, **CALL).save(folder / "before.safetensors")
    before = Calibration.load(folder / "before.safetensors")
    calls = counted(pipe)
    done["refused"] = {
        name: refusal(lambda name=name: detect(pipe, CAPTIONS, calibration=before, detector=name, fpr=0.5, **CALL))
        for name in ("turn", "early-answer", "agreement")
    }
    done["evaluations of what is refused"] = calls[0]
    done["stored norms"] = verdicts(detect(pipe, CAPTIONS, calibration=before, detector="fade", fpr=0.5, **CALL))

    calibrate(
        pipe,
        PROMPTS,
        detectors=["turn", "early-answer", "agreement"],
        localizers=["agreement"],
        batch_size=34,
        **CALL,
    ).save(folder / "after.safetensors")
    after = Calibration.load(folder / "after.safetensors")
    done["recorded"] = {"norms": [*after.runs.norms], "signals": [*after.runs.signals], "maps": [*after.maps]}
    for name in ("fade", "turn", "early-answer", "agreement"):
        found = detect(
            pipe,
            CAPTIONS,
            calibration=after,
            detector=name,
            localizer="agreement",
            mitigation="reorder",
            fpr=0.5,
            images_per_prompt=EACH,
            **CALL,
        )
        done[f"detect by {name}"] = verdicts(found)

    done["localize"] = [
        {
            "shape": [*located.maps["agreement"].shape],
            "lowest": located.maps["agreement"].min().item(),
            "mask": [*located.masks["agreement"].pixels.shape],
        }
        for located in localize(pipe, CAPTIONS, localizers="agreement", calibration=after, **CALL)
    ]

    with guard(pipe, after, policy="mitigate", detector="turn", mitigation="reorder", fpr=0.5) as guarding:
        generators = [torch.Generator().manual_seed(seed) for seed in range(EACH)]
        images = pipe(CAPTIONS[:1] * EACH, output_type="np", generator=generators, **CALL).images
    done["guard"] = [
        {
            "flagged": verdict.flagged,
            "action": verdict.action,
            "reason": verdict.reason,
            "black": bool((image == 0).all()),
        }
        for verdict, image in zip(guarding.verdicts, images, strict=True)
    ]

    references = folder / "references.txt"
    references.write_text("\n".join(PROMPTS))
    run = audit(
        pipe,
        CAPTIONS,
        folder / "run",
        references=references,
        detector="turn",
        localizer="agreement",
        mitigation="reorder",
        fpr=0.5,
        images_per_prompt=EACH,
        steps=CALL["num_inference_steps"],
        guidance=CALL["guidance_scale"],
    )
    done["audit"] = told(run)
    score(run, detector="fade")
    done["rescored by fade"] = told(run)
    done["rescored by early-answer"] = refusal(lambda: score(run, detector="early-answer"))
    score(run)
    return done


def told(run):
    """What a run says, also where its methods are not installed."""
    found = outcome(run)
    return {
        "detector": found.detector,
        "methods": run.about["methods"],
        "missing": found.missing,
        "images": sum(len(judged.images) for judged in found.prompts),
        "levels": sorted(judged.level.name for judged in found.prompts),
        "card": model_card(found),
        "page": len(html(found, run)),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    result = told(Store(target / "run")) if sys.argv[2:] == ["later"] else use(target)
    (target / f"{'later' if sys.argv[2:] else 'result'}.json").write_text(json.dumps(result))
