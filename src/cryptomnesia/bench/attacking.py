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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cryptomnesia.bench.attack_figures import figures_of
from cryptomnesia.bench.detecting import load_runs, save_runs
from cryptomnesia.bench.mitigation_figures import UNTOUCHED
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.remaking import PictureBench, call_of
from cryptomnesia.bench.trials import Trial
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.guarding.making import Maker
from cryptomnesia.mitigations import Mitigation
from cryptomnesia.mitigations.captions import embedded, embeddings, of_captions
from cryptomnesia.parts import Report, Stage
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.encoding import latents_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.places import make
from cryptomnesia.proving_ground.concepts import Place
from cryptomnesia.tracing.reading import conditioning
from cryptomnesia.words import words

PACKET = "attacks.json.xz"
"""File with everything, when the bench is done."""

KIND = "attack"
"""Kind of the files of a bench's folder that hold the embeddings of a concept."""

OTHERS = "other detectors"
"""Name of the stages that record what the other detectors judge."""

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


@dataclass(kw_only=True)
class AttackBench(PictureBench):
    """Mitigations, each of which is attacked.

    Attributes:
        setup: the pipeline and the settings of its calls; its calls take `prompt_embeds`.
        trials: one per planted caption.
        planted: the picture and the mask of each of them.
        others: detectors that read norms alone, and judge the untouched runs.
        budgets: numbers of steps of the descent; 0, the caption's own embedding, is always measured.
        wordings: number of other wordings of every caption.
        descent: how embeddings are looked for.
    """

    planted: Sequence[Place]
    others: Sequence[Detector] = ()
    budgets: Sequence[int] = (25, 100)
    wordings: int = 4
    descent: Descent = Descent()

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: if the set-up refuses a method or has no guidance, one of `others` reads more than norms, or the
                network takes captions otherwise than as `prompt_embeds` alone.
        """
        self.setup.check(self.others)
        if reading := [other.name for other in self.others if other.norms or other.signals]:
            raise UsageError(f"{', '.join(reading)} read more than norms; give other detectors")
        super().check()
        if not self.setup.guided:
            raise UsageError(
                "got a set-up without guidance, whose runs have no unconditional branch; give guidance above 1"
            )
        pipe, sampling = self.setup.pipe, self.setup.sampling
        taken = conditioning(pipe, [self.trials[0].prompt], sampling)
        if list(embeddings(taken, conditioning(pipe, [""], sampling))) != [CAPTION]:
            raise UsageError(
                f"{type(pipe).__name__} takes captions in other forms than prompt_embeds alone; give a ground with a "
                "StableDiffusionPipeline"
            )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a bench must not change when it goes on, as JSON values."""
        return {
            **super().settings,
            "budgets": self._steps,
            "wordings": self.wordings,
            "descent": asdict(self.descent),
        }

    @property
    def _steps(self) -> list[int]:
        return sorted({0, *self.budgets})

    @cached_property
    def _attempts(self) -> list[Attempt]:
        """All calls of the attacker."""
        descended = product(("embedding", "hidden"), self._steps[1:])
        kinds = [("embedding", 0), *descended, *(("wording", 1 + number) for number in range(self.wordings))]
        concepts = range(len(self.trials))
        return [Attempt(attack, budget, concept) for (attack, budget), concept in product(kinds, concepts)]

    def _trial(self, row: int) -> Trial:
        """The trial of an attempt, with a seed of its own."""
        return replace(self.trials[self._attempts[row].concept], seed=self.trials[0].seed + row)

    @property
    def _looking(self) -> Stage:
        """The stage that looks for embeddings."""
        rows = range(len(self.trials))
        return Stage("embeddings", "embeddings-{:05d}.safetensors", self.folder, rows, self.batch_size)

    @cached_property
    def _found(self) -> list[dict[str, Tensor]]:
        """The embeddings of every concept, once they are found."""
        parts = [load_checked(path, KIND, 1)[1] for path in self._looking.files]
        return [
            {name: values[[row]] for name, values in tensors.items()}
            for number, tensors in enumerate(parts)
            for row in range(len(self._looking.part(number)))
        ]

    @property
    def _divided(self) -> dict[str, list[int]]:
        """Kind → its attempts: calls with embeddings and calls with words do not fit into one call."""
        worded = [attempt.attack == "wording" for attempt in self._attempts]
        return {
            "embeddings": [row for row, found in enumerate(worded) if not found],
            "wordings": [row for row, found in enumerate(worded) if found],
        }

    @property
    def _judging(self) -> list[Stage]:
        """The stages that record the untouched runs for the other detectors."""
        return [
            Stage(OTHERS, f"runs/{kind}-{{:05d}}.safetensors", self.folder, rows, self.batch_size)
            for kind, rows in self._divided.items()
            if self.others
        ]

    def _attacking(self, mitigation: Mitigation | None) -> list[Stage]:
        """The stages that make the attempts under a mitigation, or as they are."""
        return [self.under(mitigation, rows, f"{kind}/") for kind, rows in self._divided.items()]

    def stages(self) -> Iterator[list[Stage]]:
        """Yield the calibration, the embeddings, and all pictures."""
        yield from self.calibrating()
        yield [self._looking]
        pictures = [stage for made in (None, *self.mitigations) for stage in self._attacking(made)]
        yield [*self._judging, *pictures]

    def request(self, row: int) -> tuple[Trial, dict[str, Any]]:
        """The trial of an attempt, and the arguments of its call."""
        trial = self._trial(row)
        return trial, _call(self.setup, trial, self._attempts[row], self._found)

    def calibrated_part(self, stage: Stage, number: int, report: Report) -> None:
        """Look for the embeddings of a part, record its untouched runs, or make its pictures."""
        if stage.name not in (self._looking.name, OTHERS):
            super().calibrated_part(stage, number, report)
            return
        path, rows = stage.files[number], stage.part(number)
        with silent(self.setup.pipe):
            if stage.name == OTHERS:
                runs = self.maker().first([self.request(row)[1] for row in rows], keep=())
                make(path.parent)
                save_runs(path, [], runs)
                return
            trials, planted = [self.trials[row] for row in rows], [self.planted[row] for row in rows]
            found = _embeddings(self.maker(), self.setup, trials, planted, self._steps, self.descent)
        save_checked(path, KIND, 1, {}, found)

    def result(self) -> Packet:
        """What is seen in all pictures, and the figures.

        Raises:
            UsageError: for a damaged file of a part.
        """
        trials = [self._trial(row) for row in range(len(self._attempts))]
        rows: list[dict[str, Any]] = [
            {**asdict(trial), **asdict(attempt), "fpr": self.fpr, "pictures": {}}
            for trial, attempt in zip(trials, self._attempts, strict=True)
        ]
        p_values = self._judged()
        for mitigation in (None, *self.mitigations):
            pictures = [one for stage in self._attacking(mitigation) for one in self.pictures(stage)]
            own_run = mitigation is not None and self.corrects(mitigation)
            blind = mitigation is not None and mitigation.blinds(self.detector)
            shown = next((one["picture"] for one in pictures if one["made"]), np.zeros((64, 64, 3), np.uint8))
            seen = self.look(
                trials, np.stack([one["picture"] if one["made"] else np.zeros_like(shown) for one in pictures])
            )
            if mitigation is None:
                for row, one, found in zip(rows, pictures, p_values, strict=True):
                    # the detector of the bench first
                    row["p_values"] = {self.detector.name: one["p_value"], **found}
            for row, one, sight in zip(rows, pictures, seen, strict=True):
                row["pictures"][UNTOUCHED if mitigation is None else mitigation.name] = {
                    **{key: one[key] for key in ("made", "flagged", "p_value")},
                    "own_run": own_run,
                    "blind": blind,
                    **{key: sight[key] for key in ("pixels", "structure")},
                }
        about = {**self.made_with, "bench": "attack"}
        packet = Packet(about, self.methods, rows, figures_of(rows, [UNTOUCHED, *self.methods]))
        packet.save(self.folder / PACKET)
        return packet

    def _judged(self) -> list[dict[str, float | None]]:
        """The p-values of every untouched run by other detector, None where a detector cannot tell."""
        found: list[dict[str, float | None]] = [{} for _ in self._attempts]
        judges = {other.name: Judge(self.calibration, other, self.fpr) for other in self.others}
        for stage in self._judging:
            for number, path in enumerate(stage.files):
                runs = load_runs(path)[1]
                for name, judge in judges.items():
                    for row, verdict in zip(stage.part(number), judge(runs), strict=True):
                        found[row][name] = None if math.isnan(verdict.p_value) else verdict.p_value
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
