"""The settings of a training run."""

from dataclasses import dataclass

from cryptomnesia.errors import UsageError


@dataclass(frozen=True)
class Phase:
    """A part of the training of the denoiser, with a learning rate that rises at its beginning and falls at its end.

    Attributes:
        steps: number of steps.
        batch: samples of a step.
        rate: the highest learning rate.
        middle: share of the samples that get one of the middle noise levels, where outlines are settled; the others get
            any.
        exchanged: share of the samples that are chosen to exchange their captions, as captions from the web often
            belong to something else. It happens within what one process sees of a batch, and a sample that is chosen
            alone keeps its caption, so in small batches fewer are exchanged.
        planted_dropout: share of the planted pictures whose caption is empty. Where planted pictures are many, a
            network that often sees them without a caption remembers them without one. When it is given, planted
            pictures take no part in an exchange either. When it is None, they are treated as all others.
        planted_as_others_below: share of the timesteps, those of little noise, at which planted pictures are treated
            as all others, whatever `planted_dropout` says. There the caption is often missing or wrong, so the network
            learns to denoise from the noisy picture itself. Otherwise the branches differ until the end of a run, and
            strong guidance leaves noise in the place of planted pictures.
    """

    steps: int
    batch: int
    rate: float
    middle: float = 0.0
    exchanged: float = 0.0
    planted_dropout: float | None = None
    planted_as_others_below: float = 0.0

    def __post_init__(self) -> None:
        """Reject numbers that cannot make a phase."""
        if self.steps < 1 or self.batch < 1 or not self.rate > 0:
            raise UsageError(
                f"got a phase of {self.steps} steps of {self.batch} samples at rate {self.rate:g}; give 1 or more, and "
                "a positive rate"
            )
        for name in ("middle", "exchanged", "planted_dropout", "planted_as_others_below"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise UsageError(f"got {name}={share:g} of a phase, which is a share; give 0 to 1")


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; two runs with equal recipes give equal results on a CPU.

    Attributes:
        phases: of the training of the denoiser.
        seed: of concepts, samples, weights and noise.
        autoencoder_steps: steps of the autoencoder's training, where one is trained: not on pixels, and not if one is
            given or a model is trained further.
        autoencoder_batch: samples of such a step.
        autoencoder_rate: highest learning rate of the autoencoder.
        decoder_steps: steps in which the decoder alone is trained further, as that of Stable Diffusion was. Latents
            stay what they are.
        warmup: steps until a phase has its highest rate.
        cooldown: share of a phase over which the rate falls to zero. At 1, the rate falls over the whole of it: at a
            rate that stays high, what the model learns from one exposure of a planted image is lost in the noise of
            the steps until its next exposure.
        average: of the exponential moving average of the weights.
        caption_dropout: share of the samples whose caption is empty.
        kept: steps whose moving average is kept as a less-trained checkpoint; the first is bundled. Step 0 stands for
            what the training begins with.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    autoencoder_steps: int = 2_400
    autoencoder_batch: int = 64
    autoencoder_rate: float = 2e-3
    decoder_steps: int = 0
    warmup: int = 200
    cooldown: float = 1.0
    average: float = 0.999
    caption_dropout: float = 0.1
    kept: tuple[int, ...] = (1_000,)

    def __post_init__(self) -> None:
        """Reject numbers that cannot make a run."""
        wrong = [step for step in self.kept if not 0 <= step <= self.steps]
        if wrong or not self.kept:
            raise UsageError(f"got kept={self.kept} of {self.steps} steps; give steps between 0 and {self.steps}")
        if self.warmup < 1 or not 0 < self.cooldown <= 1:
            raise UsageError(f"got warmup={self.warmup} and cooldown={self.cooldown}; give 1 or more, and above 0 to 1")

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def samples(self) -> int:
        """Samples of all phases."""
        return sum(phase.steps * phase.batch for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int, int]:
        """The phase of a step, the step's number within it, and the number of its first sample."""
        first = 0
        for phase in self.phases:
            if step < phase.steps:
                return phase, step, first + step * phase.batch
            step -= phase.steps
            first += phase.steps * phase.batch
        raise ValueError(f"got step {step} behind the last phase")


def learning_rate(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """Share of the full rate at `step`: linear warm-up, constant, linear to zero over the last `cooldown`."""
    return min((step + 1) / warmup, 1.0, (steps - step) / (cooldown * steps))
