"""The main job: from prompts to "memorized, here, and this instead"."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.scores import Calibration
from cryptomnesia.detectors import DETECTORS
from cryptomnesia.errors import UsageError
from cryptomnesia.guarding.guarded import Guard
from cryptomnesia.guarding.making import Remade, Verdict
from cryptomnesia.localizers import BrightEnding, Localizer, Watched, end_positions
from cryptomnesia.localizers.methods import check_signal
from cryptomnesia.mitigations import Rule
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import Progress, generate, silent
from cryptomnesia.tracing.trajectory import Norms


@dataclass(frozen=True)
class Finding:
    """What is known of one generated image.

    Attributes:
        prompt: its caption.
        seed: its seed.
        score: the detector's score; NaN when it could not tell.
        p_value: conformal p-value of the score, NaN likewise.
        flagged: whether the p-value is at most the chosen false-positive rate.
        crossed: of a flagged image, the evaluation, from 0, at which the running score was first flagged, against
            the references' scores at the same place.
        norms: what was seen of it, each (1, N).
        signals: of the detector, that were taken of it, each (1,).
        image: (3, H, W) in [0, 1].
        map: of a flagged image, when asked for: the localizer's at latent resolution, (h, w).
        instead: of a flagged image, when asked for: the same prompt and seed under mitigation, (3, H, W); None also
            when the mitigation found nothing that may be shown.
        remedy: of a flagged image, when asked for: the guard's verdict, with what the mitigation did.
    """

    prompt: str
    seed: int
    score: float
    p_value: float
    flagged: bool
    crossed: int | None
    norms: Norms
    signals: Mapping[str, Tensor]
    image: Tensor
    map: Tensor | None = None
    instead: Tensor | None = None
    remedy: Verdict | None = None


def examine(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    calibration: Calibration,
    *,
    detector: str = "drift",
    rate: float = 0.01,
    localizer: Localizer | None = None,
    rule: Rule | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Generate `prompts[i]` with `seeds[i]`, judge each image, and look closer at the flagged ones.

    Args:
        pipe: a pipeline of a known family.
        prompts: one per image.
        seeds: one per image.
        sampling: the settings, those of the calibration.
        calibration: of this setup; any other is refused.
        detector: one of `cryptomnesia.detectors.DETECTORS`.
        rate: false-positive rate at which an image is flagged.
        localizer: maps flagged images; None leaves maps out.
        rule: mitigates flagged images; None leaves that out.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.

    Raises:
        UsageError: before anything is generated, if the setup cannot answer.
    """
    judge, guarding = check(pipe, sampling, calibration, detector=detector, rate=rate, localizer=localizer, rule=rule)
    adapter = adapter_for(pipe)
    keep = () if localizer is None else localizer.evaluations
    for batch in generate(
        pipe, prompts, seeds, sampling, batch_size=batch_size, keep=keep, signals=judge.signals, progress=progress
    ):
        judged = judge(batch.trajectory)
        rows = [row for row, each in enumerate(judged) if each.flagged]
        maps: dict[int, Tensor] = {}
        remade: dict[int, Remade] = {}
        if rows and localizer is not None:
            view = adapter.denoiser()
            attention = isinstance(localizer, BrightEnding)
            ends = end_positions(pipe, [batch.prompts[row] for row in rows]) if attention else None
            watched = Watched(batch.trajectory.rows(rows), view, ends=ends, seeds=[batch.seeds[row] for row in rows])
            maps = dict(zip(rows, localizer.map(watched).cpu(), strict=True))
        if guarding is not None:
            calls = [
                {
                    **adapter.arguments([batch.prompts[row]], sampling),
                    "generator": torch.Generator().manual_seed(batch.seeds[row]),
                    "output_type": "pt",
                }
                for row in rows
            ]
            verdicts = [Verdict(row, batch.prompts[row], **vars(judged[row])) for row in rows]
            with silent(pipe):
                remade = dict(zip(rows, guarding.mitigate(calls, verdicts), strict=True))
        for row, each in enumerate(judged):
            there = remade.get(row)
            shown = None if there is None or there.output is None else there.output.images[there.place]
            yield Finding(
                prompt=batch.prompts[row],
                seed=batch.seeds[row],
                score=each.score,
                p_value=each.p_value,
                flagged=each.flagged,
                crossed=each.crossed,
                norms=batch.trajectory.norms.rows([row]),
                signals={name: values[[row]] for name, values in batch.trajectory.signals.items()},
                image=batch.images[row],
                map=maps.get(row),
                instead=None if shown is None else shown.float().cpu(),
                remedy=None if there is None else there.verdict,
            )


def check(
    pipe: Any,
    sampling: Sampling,
    calibration: Calibration,
    *,
    detector: str = "drift",
    rate: float = 0.01,
    localizer: Localizer | None = None,
    rule: Rule | None = None,
) -> tuple[Judge, Guard | None]:
    """See that setup, calibration and settings fit together; arguments as for `examine`.

    Returns:
        What judges images, and what makes those again that are flagged, None without a rule.

    Raises:
        UsageError: saying what does not fit.
    """
    adapter = adapter_for(pipe)
    needs = DETECTORS[detector](calibration.reference).needs if detector in DETECTORS else frozenset()
    needing = [detector] * ("uncond" in needs) + (
        [localizer.name] if localizer is not None and localizer.differs else []
    )
    if needing and not adapter.guided_in(sampling):
        raise UsageError(
            f"{' and '.join(needing)} needs the unconditional branch, and at guidance {sampling.guidance:g} "
            f"{type(pipe).__name__} has none; give guidance above 1, to a model that is not distilled"
        )
    if localizer is not None:
        check_signal(pipe, sampling, localizer)
    guarding = (
        None if rule is None else Guard(pipe, calibration, policy="mitigate", detector=detector, rate=rate, rule=rule)
    )
    calibration.check(pipe, sampling)
    return Judge(calibration, detector, rate), guarding
