"""Norm of the condition's Jacobian (OpenReview pY2P28M9Iv): how strongly the prediction depends on the caption.

The score is an estimate of ‖∂ε_c/∂e‖_F at the first evaluation, where e is what the network reads of the caption: the
root mean square of ‖∂ε_c/∂e·v‖ over random directions v with entries ±1. For networks that predict v or a flow, the
predicted value takes the place of ε.
"""

from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import wide
from cryptomnesia.localizers.jacobian.directional import along
from cryptomnesia.pipelines.denoiser import Denoiser, norms
from cryptomnesia.pipelines.inputs import input_rows
from cryptomnesia.pipelines.setup import Requirement, Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory

_CAPTION = "encoder_hidden_states"
"""The argument of diffusers' networks that holds the tokens of the caption."""


@dataclass(frozen=True)
class ConditionJacobian(Measured):
    """‖∂ε_c/∂e‖_F at evaluation `step`, ≥ 0, in latent units over units of the embedding.

    Attributes:
        step: the evaluation.
        probes: random directions, the same for all images.
        seed: of the directions.
    """

    step: Place = 0
    probes: int = 4
    seed: int = 0

    name = "condition-jacobian"
    summary = "How strongly the prediction depends on the caption's embedding, at the first step."
    source = "OpenReview pY2P28M9Iv"
    use_when = "You compare with it. The runs need no unconditional branch."
    avoid_when = "You can wait: `guidance-mean` costs nothing."

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluation `step`, at which the score is measured."""
        return (self.step,)

    @property
    def requires(self) -> frozenset[Requirement]:
        """A model that reads captions."""
        return frozenset({"captions"})

    def check(self, setup: Setup) -> None:
        """Refuse a network that does not read the tokens of the caption as one tensor.

        Raises:
            UsageError: naming the network.
        """
        super().check(setup)
        network = type(getattr(setup.family.module, "_orig_mod", setup.family.module))
        if _CAPTION not in signature(network.forward).parameters:
            raise UsageError(
                f"{self.name} needs a network that reads the caption as {_CAPTION!r}, and a {network.__name__} reads "
                "it in another way; use another detector"
            )

    def cost(self, setup: Setup) -> float:
        """One evaluation of the conditional branch for every probe and one more, half of one of both branches each."""
        return (1 + self.probes) * (0.5 if setup.guided else 1.0)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        step = run.step(self.step)
        tokens: Tensor = step.cond_inputs[_CAPTION]
        # embeddings of different text encoders have different lengths
        size = wide(tokens).flatten(1).square().mean(dim=1).sqrt().view(-1, *[1] * (tokens.dim() - 1)).to(tokens)

        def predicted(relative: Tensor, rows: Tensor) -> Tensor:
            inputs = {**input_rows(step.cond_inputs, rows), _CAPTION: relative * size[rows]}
            return denoiser(step.cond.x[rows], step.level, inputs).value

        known = predicted(tokens / size, torch.arange(len(tokens)))
        generator = torch.Generator().manual_seed(self.seed)
        total = torch.zeros(len(tokens), device=tokens.device)
        for _ in range(self.probes):
            signs = 2.0 * torch.randint(2, tokens.shape[1:], generator=generator) - 1
            direction = signs.to(tokens).expand_as(tokens) / size
            product = along(predicted, tokens / size, direction, scale=0.1, value=known)
            total += norms(wide(product)).square()
        return (total / self.probes).sqrt()
