"""An attacker tries to bring planted pictures back under every mitigation.

The attacker knows the planted picture and the weights, and asks the guarded pipeline:

- `embedding`: with an embedding in place of a caption (`prompt_embeds`). Adam moves it from the embedding of the
  planted caption so that the network's estimate x̂_0 is the planted picture at all noise levels of the run, as
  arXiv:2507.16880 brings pruned memories back. The budget is the number of steps.
- `hidden`: with such an embedding which in addition keeps x̂_0 as blurred as that of the unconditional branch in the
  first fifth of the run, so that a detector that reads the first evaluations sees an ordinary run.
- `wording`: with the planted caption in other words or another order, or with words repeated. The budget is the number
  of different wordings; one copy among them is enough.

Other detectors judge the untouched runs as well, those that read norms alone and cost nothing. So it can be seen which
of them notice an attack that hides from the detector of the guard.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cryptomnesia.bench.attack_figures import figures_of
from cryptomnesia.bench.detecting import Progress, alone, calibrated, made_with, settings_of
from cryptomnesia.bench.mitigating import Look
from cryptomnesia.bench.mitigation_figures import UNTOUCHED
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.remaking import call_of, kept_pictures
from cryptomnesia.bench.trials import Trial
from cryptomnesia.calibration.fitting import check_references
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import claim, load_checked, save_checked
from cryptomnesia.guarding.black import latents_of
from cryptomnesia.guarding.making import Maker
from cryptomnesia.mitigations import Mitigation
from cryptomnesia.mitigations.captions import embedded, embeddings, of_captions
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import Place
from cryptomnesia.tracing.generation import check_call
from cryptomnesia.tracing.reading import conditioning
from cryptomnesia.words import words

PACKET = "attacks.json.xz"
"""File with everything, when the bench is done."""

KIND = "attack"
"""Kind of the files of a bench's folder that hold the embeddings of a concept."""

EARLY = 0.2
"""Share of the run in which the attack `hidden` looks ordinary."""

CAPTION = ("encoder_hidden_states",)
"""Where a network takes what a call gives as `prompt_embeds`."""


@dataclass(frozen=True)
class Descent:
    """How the attacker looks for an embedding.

    Attributes:
        rate: of Adam, relative to the root mean square of the caption's embedding, > 0.
        levels: noise levels per step.
        seed: of the noise.
    """

    rate: float = 0.05
    levels: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Attempt:
    """One call of the attacker.

    Attributes:
        attack: `embedding`, `hidden` or `wording`.
        budget: steps of the descent, or the number of the wording, from 1.
        concept: number of the planted caption.
    """

    attack: str
    budget: int
    concept: int


def bench_attacks(
    setup: Setup,
    trials: Sequence[Trial],
    planted: Sequence[Place],
    references: Sequence[str],
    mitigations: Sequence[Mitigation],
    detector: Detector,
    folder: Path,
    *,
    call: dict[str, Any],
    about: dict[str, Any],
    look: Look,
    others: Sequence[Detector] = (),
    budgets: Sequence[int] = (25, 100),
    wordings: int = 4,
    descent: Descent = Descent(),
    fpr: float = 0.01,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Packet:
    """Attack every mitigation, and write the packet to `folder`.

    Args:
        setup: the pipeline and the settings of its calls; its calls take `prompt_embeds`.
        trials: one per planted caption.
        planted: the picture and the mask of each of them.
        references: captions of the calibration, ordinary ones that are none of the trials.
        mitigations: that work in the set-up.
        detector: judges every picture.
        folder: made if missing. If it holds a bench of the same kind that was stopped, that one goes on.
        call: arguments of every call, with which `setup` was made.
        about: what else the pictures depend on, as JSON values.
        look: sees what is in pictures.
        others: detectors that read norms alone, and judge the untouched runs.
        budgets: numbers of steps of the descent; 0, the caption's own embedding, is always measured.
        wordings: number of other wordings of every caption.
        descent: how embeddings are looked for.
        fpr: false-positive rate at which a picture is flagged.
        batch_size: images per call of the pipeline.
        progress: called while embeddings are looked for and images are made.

    Raises:
        UsageError: if the folder holds another bench, another process works in it, the set-up refuses a method or has
            no guidance, one of `others` reads more than norms, or the network takes captions otherwise than as
            `prompt_embeds` alone.
    """
    report = progress or (lambda *_: None)
    setup.check([detector, *others, *mitigations])
    if reading := [other.name for other in others if other.norms or other.signals]:
        raise UsageError(f"{', '.join(reading)} read more than norms; give other detectors")
    check_call(setup)
    if not setup.guided:
        raise UsageError(
            "got a set-up without guidance, whose runs have no unconditional branch; give guidance above 1"
        )
    taken = conditioning(setup.pipe, [trials[0].prompt], setup.sampling)
    if list(embeddings(taken, conditioning(setup.pipe, [""], setup.sampling))) != [CAPTION]:
        raise UsageError(
            f"{type(setup.pipe).__name__} takes captions in other forms than prompt_embeds alone; give a ground with a "
            "StableDiffusionPipeline"
        )
    check_references(references, repeated=False, fpr=fpr)
    steps = sorted({0, *budgets})
    settings = {
        **settings_of(setup, about, references, trials, batch_size=batch_size, threshold=0.0),
        "detector": detector.describe(),
        "fpr": fpr,
        "budgets": steps,
        "wordings": wordings,
        "descent": asdict(descent),
    }
    claim(folder / "bench.json", settings, "a bench with other settings")
    localizers = {found.name: found for made in mitigations for found in made.maps(setup)}
    with alone(folder), silent(setup.pipe):
        calibration = calibrated(
            setup,
            references,
            folder,
            call=call,
            batch_size=batch_size,
            report=report,
            detectors=[detector],
            localizers=list(localizers.values()),
        )
        calibration.check_localizers(list(localizers.values()))
        maker = Maker(setup.pipe, Judge(calibration, detector, fpr), batch=batch_size)
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(trials), batch_size):
            path = folder / f"embeddings-{start // batch_size:05d}.safetensors"
            part = slice(start, start + batch_size)
            if not path.exists():
                save_checked(path, KIND, 1, {}, _embeddings(maker, setup, trials[part], planted[part], steps, descent))
            tensors = load_checked(path, KIND, 1)[1]
            found += [{name: values[[row]] for name, values in tensors.items()} for row in range(len(trials[part]))]
            report("embeddings", len(found), len(trials))
        descended = product(("embedding", "hidden"), steps[1:])
        kinds = [("embedding", 0), *descended, *(("wording", 1 + number) for number in range(wordings))]
        attempts = [
            Attempt(attack, budget, concept) for (attack, budget), concept in product(kinds, range(len(trials)))
        ]
        # a seed of its own for every attempt
        made_of = [
            replace(trials[attempt.concept], seed=trials[0].seed + number) for number, attempt in enumerate(attempts)
        ]
        calls = [_call(setup, trial, attempt, found) for trial, attempt in zip(made_of, attempts, strict=True)]
        rows: list[dict[str, Any]] = [
            {**asdict(trial), **asdict(attempt), "fpr": fpr, "pictures": {}}
            for trial, attempt in zip(made_of, attempts, strict=True)
        ]
        judges = {other.name: Judge(calibration, other, fpr) for other in others}
        p_values = _judged(maker, judges, attempts, calls, batch_size, report)
        for mitigation in (None, *mitigations):
            telling = maker
            if mitigation is not None:
                judge = Judge(calibration, detector, fpr)
                telling = Maker(setup.pipe, judge, alters=mitigation.alters, batch=batch_size)
            pictures = []
            # calls with embeddings and calls with words do not fit into one call
            for part, worded in (("embeddings", False), ("wordings", True)):
                chosen = [row for row, attempt in enumerate(attempts) if (attempt.attack == "wording") == worded]
                (folder / part).mkdir(exist_ok=True)
                pictures += kept_pictures(
                    telling,
                    mitigation,
                    setup,
                    [made_of[row] for row in chosen],
                    folder / part,
                    batch_size,
                    report,
                    [calls[row] for row in chosen],
                )
            own_run = mitigation is not None and mitigation.correction(calibration.references) is not None
            blind = mitigation is not None and mitigation.blinds(detector)
            shown = next((one["picture"] for one in pictures if one["made"]), np.zeros((64, 64, 3), np.uint8))
            seen = look(
                made_of, np.stack([one["picture"] if one["made"] else np.zeros_like(shown) for one in pictures])
            )
            if mitigation is None:
                for row, one, found_by in zip(rows, pictures, p_values, strict=True):
                    # the detector of the bench first
                    row["p_values"] = {detector.name: one["p_value"], **found_by}
            for row, one, sight in zip(rows, pictures, seen, strict=True):
                kept = {key: one[key] for key in ("made", "flagged", "p_value")}
                row["pictures"][UNTOUCHED if mitigation is None else mitigation.name] = {
                    **kept,
                    "own_run": own_run,
                    "blind": blind,
                    **{key: sight[key] for key in ("pixels", "structure")},
                }
        methods = {made.name: {"describe": made.describe(), "cost": made.cost(setup)} for made in mitigations}
        about = {**made_with(settings, references), "bench": "attack"}
        packet = Packet(about, methods, rows, figures_of(rows, [UNTOUCHED, *methods]))
        packet.save(folder / PACKET)
        return packet


def _judged(
    maker: Maker,
    judges: Mapping[str, Judge],
    attempts: Sequence[Attempt],
    calls: Sequence[dict[str, Any]],
    batch_size: int,
    report: Progress,
) -> list[dict[str, float | None]]:
    """The p-values of every untouched run by detector, None where a detector cannot tell."""
    found: list[dict[str, float | None]] = [{} for _ in calls]
    if not judges:
        return found
    done = 0
    for worded in (False, True):
        chosen = [row for row, attempt in enumerate(attempts) if (attempt.attack == "wording") == worded]
        for start in range(0, len(chosen), batch_size):
            rows = chosen[start : start + batch_size]
            runs = maker.first([calls[row] for row in rows], keep=())
            for name, judge in judges.items():
                for row, verdict in zip(rows, judge(runs), strict=True):
                    found[row][name] = None if math.isnan(verdict.p_value) else verdict.p_value
            done += len(rows)
            report("other detectors", done, len(calls))
    return found


def _call(setup: Setup, trial: Trial, attempt: Attempt, found: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """The arguments of the attacker's call."""
    call = call_of(setup, trial)
    if attempt.attack == "wording":
        return {**call, "prompt": [other_wordings(trial.prompt, attempt.budget)[-1]]}
    del call["prompt"]
    embedding = found[attempt.concept][f"{attempt.attack} {attempt.budget}"]
    module: Any = setup.family.module
    return {**call, "prompt_embeds": embedding.to(module.device, module.dtype)}


def other_wordings(text: str, count: int) -> list[str]:
    """Different texts that say what a caption says, with words repeated or in another order.

    The order is the same for every count, and every caption has another one.

    Args:
        text: the caption.
        count: of texts; of a short caption there may be fewer different ones, and the last is repeated.

    Example:
        >>> other_wordings("a red cat", 2)
        ['cat, a red cat', 'a red cat cat']
    """
    given = words(text)
    clauses = [part.strip() for part in text.split(",")]
    possible = [
        f"{text}, {text}",
        f"a photo of {text}",
        f"{text}, a picture",
        " ".join(reversed(given)),
        ", ".join(reversed(clauses)),
        *(text.replace(word, f"{word} {word}", 1) for word in given),
        *(f"{word}, {text}" for word in given),
    ]
    # most text encoders read capitals as small letters
    different = [other for other in dict.fromkeys(possible) if other.casefold() != text.casefold()]
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    order = np.random.default_rng(digest).permutation(len(different))
    return [different[order[min(number, len(different) - 1)]] for number in range(count)]


def _embeddings(
    maker: Maker,
    setup: Setup,
    trials: Sequence[Trial],
    planted: Sequence[Place],
    steps: Sequence[int],
    descent: Descent,
) -> dict[str, Tensor]:
    """Attack and number of steps → the embeddings of n captions after so many steps, (n, L, D), on the CPU."""
    run = maker.first([call_of(setup, trial) for trial in trials], keep="all")
    evaluations = [run.step(number) for number in range(len(run.timesteps))]
    first = evaluations[0]
    places = of_captions(first)
    caption = places[CAPTION].detach().float().clone()
    pictures = torch.from_numpy(np.stack([place.image for place in planted])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        vae: Any = setup.pipe.vae
        target = latents_of(vae, pictures.to(vae.device, vae.dtype)).float().to(caption.device)
    masks = torch.from_numpy(np.stack([place.mask for place in planted]))[:, None].float().to(caption.device)
    weights = adaptive_avg_pool2d(masks, (target.shape[-2], target.shape[-1]))
    weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True)
    denoiser = setup.family.denoiser()
    found = {"embedding 0": caption.cpu()}
    for attack in ("embedding", "hidden"):
        draws = torch.Generator().manual_seed(descent.seed)
        early = round(EARLY * len(evaluations)) if attack == "hidden" else 0
        with torch.inference_mode(False), torch.enable_grad():
            moved = caption.clone().requires_grad_()
            # Adam moves every number by itself, so the captions of a batch do not disturb one another
            optimizer = torch.optim.Adam([moved], lr=descent.rate * caption.square().mean().sqrt().item())
            for step in range(1, max(steps) + 1):
                moved.grad = torch.zeros_like(moved)
                for number in torch.randint(len(evaluations), (descent.levels,), generator=draws).tolist():
                    level = evaluations[number].level
                    noise = torch.randn(target.shape, generator=draws).to(caption.device)
                    x = (level.alpha * target + level.sigma * noise).to(first.cond.x.dtype)
                    inputs = embedded(first.cond_inputs, {CAPTION: moved.to(places[CAPTION].dtype)})
                    estimate = denoiser(x, level, inputs).x0.float()
                    if number < early:
                        assert first.uncond_inputs is not None
                        with torch.no_grad():
                            usual = denoiser(x, level, first.uncond_inputs).x0.float()
                        loss = (estimate - usual).square()
                    else:
                        loss = (estimate - target).square() * weights
                    # the gradients of the weights are not wanted
                    moved.grad += torch.autograd.grad(loss.mean(dim=(1, 2, 3)).sum(), moved)[0]
                optimizer.step()
                if step in steps:
                    found[f"{attack} {step}"] = moved.detach().cpu().clone()
    return found
