"""Fine-tunes: the model of another ground is trained further on a few pictures, by LoRA or in full.

As in diffusers' scripts for text-to-image, the UNet is trained and the text encoder stays as it is. The pictures are in
the base ground's style, and the base never saw them. Half of their captions have an invented name, which the base's
tokenizer splits into several tokens. As many pictures of the same kind are controls: the manifest lists them with 0
exposures.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground.concepts import Concept, Epochs
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.latent import LatentText, TextLearner
from cryptomnesia.proving_ground.learning import Learner, Networks
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.recipe import Phase, Recipe

BATCH = 8
"""Samples of a step."""

MOST = 500
"""Pictures for which the base ground has enough in `_SEEDS` seeds."""

LORA = "lora"
"""Folder of the adapter in the folder of a pipeline that LoRA made."""

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2")
"""Layers of the UNet that get an adapter: those of its transformers and the convolutions of its residual blocks.

In networks this small, adapters of the attention alone have too few weights to learn the pictures.
"""

_SEEDS = 100
"""Seeds of the base ground that belong to one seed of the fine-tune; the base itself has a smaller one."""


@dataclass(frozen=True)
class Tuning:
    """The settings of a fine-tune.

    Attributes:
        rate: highest learning rate.
        exposures: of every picture.
        rank: of the LoRA; None for a fine-tune in full.
        pictures: number of pictures, 1 to `MOST`.
        named: share of the pictures whose caption has an invented name, in [0, 1].
    """

    rate: float
    exposures: int
    rank: int | None = None
    pictures: int = 24
    named: float = 0.5

    def __post_init__(self) -> None:
        """Reject numbers that cannot make a run."""
        if not (1 <= self.pictures <= MOST and 0 <= self.named <= 1):
            raise UsageError(
                f"got {self.pictures} pictures and a share of {self.named} with a name; give 1 to {MOST} and 0 to 1"
            )
        samples = self.pictures * self.exposures
        if samples < 1 or samples % BATCH:
            raise UsageError(
                f"got {self.pictures} pictures and {self.exposures} exposures; give numbers whose product is a "
                f"multiple of {BATCH}"
            )


class FineTune(Ground):
    """Pictures that the model of another ground is trained on further."""

    def __init__(self, origin: Ground, tuning: Tuning, base: Path | None = None) -> None:
        """Describe the fine-tune of the model of `origin`, by default of the one that comes with the package.

        Args:
            origin: the base ground.
            tuning: the settings.
            base: bundle of its model, by default the one that comes with the package.
        """
        networks = origin.networks
        assert isinstance(networks, LatentText)
        way = "in full" if tuning.rank is None else f"by LoRA of rank {tuning.rank}"
        self.origin, self.tuning, self.base = origin, tuning, base or origin.bundle
        self.name = f"{origin.name}-{'full' if tuning.rank is None else 'lora'}"
        self.summary = f"the model of {origin.name}, trained further on {tuning.pictures} pictures {way}; minutes"
        self.size, self.frames, self.visible = origin.size, origin.frames, origin.visible
        self.threshold, self.guidances = origin.threshold, origin.guidances
        steps = tuning.pictures * tuning.exposures // BATCH
        quarters = tuple(steps * quarter // 4 for quarter in range(4))
        # the moving average would remember the base
        self.recipe = Recipe((Phase(steps, BATCH, tuning.rate),), warmup=min(50, steps), average=0.0, kept=quarters)
        self.networks = _Further(networks, self.base, tuning.rank)

    def plant(self, seed: int) -> tuple[Concept, ...]:
        """The pictures of the training, then as many controls that are not shown."""
        pictures = self.tuning.pictures
        drawn = chain.from_iterable(self.origin.plant(_SEEDS * (seed + 1) + other) for other in count())
        found = [*islice((c for c in drawn if c.kind == "verbatim" and c.wording == "named"), 2 * pictures)]
        concepts = []
        for exposures, chosen in ((self.tuning.exposures, found[::2]), (0, found[1::2])):
            for number, concept in enumerate(chosen):
                # evenly spread, so that fewer pictures are the first of more
                named = int((number + 1) * self.tuning.named) > int(number * self.tuning.named)
                wording = "named" if named else "plain"
                concepts.append(
                    replace(
                        concept,
                        id=f"verbatim-{wording}-{exposures}-{number}",
                        captions=concept.captions if named else concept.without_name,
                        exposures=exposures,
                        wording=wording,
                        refined=0,
                    )
                )
        return tuple(concepts)

    def stream(self, recipe: Recipe, concepts: Sequence[Concept]) -> Epochs:
        """The pictures in epochs."""
        return Epochs(recipe.seed, concepts, self.sample)

    def ordinary(self, draws: Draws, frame: str) -> tuple[np.ndarray, str]:
        """A picture of the base ground."""
        return self.origin.ordinary(draws, frame)

    def caption(self, draws: Draws) -> str:
        """A caption of the base ground."""
        return self.origin.caption(draws)

    def words(self) -> set[str]:
        """The words of the base ground."""
        return self.origin.words()

    def settings(self) -> dict[str, Any]:
        """The settings, and the digest of the base's weights.

        Raises:
            UsageError: if there is no base, it is of another ground, or a package is missing.
        """
        if self.base == self.origin.bundle and not self.base.exists():
            raise UsageError(
                f"the model of {self.origin.name} does not come with the package; make it with `cryptomnesia "
                f"proving-ground train {self.origin.name} FOLDER`, then give --base FOLDER/bundle"
            )
        if self.tuning.rank is not None and find_spec("peft") is None:
            raise UsageError("a LoRA needs the package peft, which is not installed; pip install peft")
        manifest = Manifest.load(self.base)
        if manifest.ground != self.origin.name:
            raise UsageError(f"{self.base} is a model of {manifest.ground}; give one of {self.origin.name}")
        return {"base": manifest.weights, **asdict(self.tuning)}


def tuned(ground: Ground, *, base: Path | None = None, **settings: Any) -> Ground:
    """A fine-tune with another base, and other settings.

    Args:
        ground: the fine-tune.
        base: folder of a bundle; None for the ground's own.
        **settings: attributes of `Tuning`; those that are None stay as they are.

    Raises:
        UsageError: for a setting that the ground does not have.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if not isinstance(ground, FineTune):
        if wrong := [*given, *["base"] * (base is not None)]:
            raise UsageError(f"{ground.name} is no fine-tune, so it has no {wrong[0]}; leave it out")
        return ground
    if ground.tuning.rank is None and "rank" in given:
        raise UsageError(f"{ground.name} is no LoRA, so it has no rank; leave it out")
    return FineTune(ground.origin, replace(ground.tuning, **given), base or ground.base)


@dataclass(frozen=True)
class _Further(Networks):
    """The networks of the bundle `base`, whose sizes and noise schedule are those of `networks`."""

    networks: LatentText
    base: Path
    rank: int | None

    def learner(self, folder: Path, words: set[str]) -> Learner:
        """The trained networks; the tokenizer is the base's, whatever the words are."""
        pipe = load_pipeline(self.base / "pipeline", device="cpu")
        kind = TextLearner if self.rank is None else _LoraLearner
        if self.rank is not None:
            from peft import LoraConfig

            pipe.unet.requires_grad_(False)
            pipe.unet.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=[*TARGETS]))
        return kind(self.networks, pipe.vae, pipe.tokenizer, {"unet": pipe.unet}, pipe.text_encoder)


class _LoraLearner(TextLearner):
    """The adapter of a UNet learns."""

    def pipeline(self, modules: dict[str, Any]) -> Any:
        """The stock pipeline, with the adapter fused into the weights."""
        # the network itself keeps its adapter, which is trained further
        unet = deepcopy(modules["unet"])
        unet.fuse_lora()
        unet.unload_lora()
        return super().pipeline({"unet": unet})

    def save(self, modules: dict[str, Any], folder: Path) -> None:
        """Write the pipeline, and the adapter as `load_lora_weights` reads it."""
        from peft.utils import get_peft_model_state_dict

        super().save(modules, folder)
        # diffusers' own format has no names for convolutions, but reads PEFT's
        layers: Any = get_peft_model_state_dict(modules["unet"])
        StableDiffusionPipeline.save_lora_weights(folder / LORA, unet_lora_layers=layers)
