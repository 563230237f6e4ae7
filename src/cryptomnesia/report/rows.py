"""What commands print of an image, as rows of a table and as JSON. Importing this module loads nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptomnesia import __version__
from cryptomnesia.auditing.as_json import finite

if TYPE_CHECKING:
    from cryptomnesia.attribution import Word
    from cryptomnesia.localization import Located
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.verdicts import Verdict


class Judged(NamedTuple):
    """An image of which only its verdict and its file are kept.

    Attributes:
        seed: of the image.
        verdict: on the image.
        file: picture or panel of the image, None if none was written.
        truncated: whether the prompt is longer than the text encoders read, so that its end had no influence.
        words: what every word of the prompt brings, None where that was not measured.
    """

    seed: int
    verdict: "Verdict"
    file: Path | None
    truncated: bool = False
    words: "tuple[Word, ...] | None" = None

    def to_json(self) -> dict[str, Any]:
        """Seed, file, words and everything that the verdict says, as JSON values."""
        fields = asdict(self.verdict)
        # the number of the image in a call says nothing here
        del fields["image"]
        return {
            "seed": self.seed,
            "file": None if self.file is None else str(self.file),
            "answer": self.verdict.answer,
            "truncated": self.truncated,
            "words": None if self.words is None else [finite(asdict(word)) for word in self.words],
            **{name: finite(value) for name, value in fields.items()},
        }


class Region(NamedTuple):
    """What one map says of one picture.

    Attributes:
        prompt: caption of the picture.
        seed: of the picture.
        localizer: name of the localizer that made the map.
        mean: spatial mean of the map.
        mean_p_value: conformal p-value of the mean, None without a calibration.
        error: root mean square of the standard errors of the pixels, None if nothing was estimated.
        fraction: share of the picture that is memorized, None without a calibration.
        p_value: conformal p-value of the fraction, None without a calibration.
        panel: PNG file.
        maps: safetensors file.
        truncated: whether the prompt is longer than the text encoders read, so that its end had no influence.
    """

    prompt: str
    seed: int
    localizer: str
    mean: float | None
    mean_p_value: float | None
    error: float | None
    fraction: float | None
    p_value: float | None
    panel: str
    maps: str
    truncated: bool = False


class Compared(NamedTuple):
    """A picture and the training image that is nearest to it.

    Attributes:
        picture: path of the picture.
        training_image: path of the nearest training image in the folder that was indexed.
        distance: of the two, in the descriptor's units.
        relative: the distance divided by the one below which a picture may be a copy.
        p_value: conformal p-value of `relative`.
        reproduced: whether the picture reproduces the training image.
        reading: in which way the training image was read, "" if there is only one.
        caption: of the training image, "" if it has none.
    """

    picture: str
    training_image: str
    distance: float
    relative: float
    p_value: float
    reproduced: bool
    reading: str
    caption: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: finite(value) for name, value in self._asdict().items()}


class Listed(NamedTuple):
    """What is known of a registered method without using it.

    Attributes:
        kind: detector, localizer, mitigation or family.
        name: under which it is registered.
        package: that registers it.
        version: of that package.
        state: `ready`, or why the method cannot be used.
        requires: what the set-up must have.
        cost: denoiser evaluations per image beyond the generation, None where it is not known.
        summary: what the method does.
    """

    kind: str
    name: str
    package: str
    version: str
    state: str
    requires: list[str]
    cost: float | None
    summary: str


def regions(located: "Located", panel: Path, maps: Path) -> list[Region]:
    """What every map says of a picture with these two files."""
    rows = []
    for name, heat in located.maps.items():
        mask, error = located.masks.get(name), located.errors.get(name)
        rows.append(
            Region(
                prompt=located.prompt,
                seed=located.seed,
                localizer=name,
                mean=finite(heat.mean().item()),
                mean_p_value=None if mask is None else finite(mask.mean_p_value.item()),
                error=None if error is None else finite(error.square().mean().sqrt().item()),
                fraction=None if mask is None else mask.fraction.item(),
                p_value=None if mask is None else finite(mask.p_value.item()),
                panel=str(panel),
                maps=str(maps),
            )
        )
    return rows


def what_was_done(verdict: "Verdict") -> str:
    """What was done about an image, in a few words; "" if nothing was."""
    dropped = f"without {', '.join(verdict.dropped)}" if verdict.dropped else ""
    if verdict.action == "mitigated" and dropped:
        return dropped
    if verdict.action == "withheld" and dropped:
        return f"withheld, also {dropped}"
    if verdict.action == "mitigated" and verdict.severity != "none":
        return f"corrected, {verdict.severity}"
    return "" if verdict.action == "none" else verdict.action


def verdicts_to_json(rows: Sequence[Judged], model: str, setup: "Setup", **more: Any) -> dict[str, Any]:
    """Verdicts and the settings that they hold for, as JSON values; NaN becomes null."""
    return {**settings_to_json(model, setup), **more, "images": [row.to_json() for row in rows]}


def regions_to_json(
    rows: Sequence[Region], model: str, setup: "Setup", localizers: Mapping[str, str], pixel_fpr: float | None
) -> dict[str, Any]:
    """Regions and the settings that they hold for, as JSON values.

    Args:
        rows: what every map says of every picture.
        model: as it was given.
        setup: of the generation.
        localizers: name → everything that changes the map, in words.
        pixel_fpr: share of ordinary pixels above the threshold of a mask, None without masks.
    """
    return {
        **settings_to_json(model, setup),
        "pixel_fpr": pixel_fpr,
        "localizers": dict(localizers),
        "maps": [row._asdict() for row in rows],
    }


def settings_to_json(model: str, setup: "Setup") -> dict[str, Any]:
    """The version, the model, and the settings of every call, as JSON values."""
    return {
        "cryptomnesia": __version__,
        "model": model,
        "scheduler": type(setup.pipe.scheduler).__name__,
        **asdict(setup.sampling),
    }
