"""What a run directory must hold: a run may have been copied, cut short or edited since `audit` wrote it.

Everything that reads a run relies on this. Further keys and columns are allowed.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from cryptomnesia.errors import UsageError
from cryptomnesia.verdicts import Action

_MOST_REFERENCES = 10**6
"""Scores of references that a null holds at most; statistics go through all numbers up to it."""

_STRICT = ConfigDict(strict=True)


def _share_or_nan(value: float) -> float:
    if not (math.isnan(value) or 0 <= value <= 1):
        raise ValueError("expected a number from 0 to 1, or NaN")
    return value


def _rectangular(grid: list[list[Any]]) -> list[list[Any]]:
    if len({len(row) for row in grid}) != 1 or not grid[0]:
        raise ValueError("expected rows of one length")
    return grid


Share = Annotated[float, AfterValidator(_share_or_nan)]
"""A share or a p-value: NaN where there is none."""

_Whole = Annotated[int, Field(ge=0)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Rate = Annotated[float, Field(gt=0, lt=1)]
_Reasons = dict[str, str]


@with_config(_STRICT)
class _Roles(TypedDict):
    """Something of every method of the run."""

    detector: str
    localizer: str | None
    mitigation: str | None


@with_config(_STRICT)
class _Fingerprint(TypedDict):
    """What reports say of the set-up."""

    pipeline: str
    scheduler: str
    steps: int
    guidance: _Finite
    dtype: str


@with_config(_STRICT)
class _Versions(TypedDict):
    """The packages that made the run."""

    cryptomnesia: str


@with_config(_STRICT)
class _About(TypedDict):
    """`about` in run.json."""

    settings: dict[str, Any]
    call: dict[str, Any]
    model: str
    methods: _Roles
    made_by: _Roles
    observes: _Roles
    prompts: Annotated[list[str], Field(min_length=1)]
    fingerprint: _Fingerprint
    weights: str
    references: list[str] | None
    index: tuple[str, int] | None
    skipped: _Reasons
    skipped_count: _Whole
    versions: _Versions
    # runs of earlier versions lack these
    unlike: NotRequired[list[str]]
    null: NotRequired[Annotated[int, Field(ge=0, le=_MOST_REFERENCES)]]
    guard: NotRequired[str | None]


@with_config(_STRICT)
class _Word(TypedDict):
    """What a word of a prompt brings."""

    text: str
    left_out: float
    gradient: Share | None


@with_config(_STRICT)
class _Judged(TypedDict):
    """The columns that rows of both stages have."""

    prompt: str
    seed: _Whole
    detector: str
    fpr: _Rate
    score: float
    p_value: Share
    flagged: bool
    first_flagged_step: _Whole | None
    reason: str
    severity: str
    corrected: list[int]
    dropped: list[str]
    retried: list[float]
    action: Action


@with_config(_STRICT)
class _Image(_Judged):
    """A row of the stage `images`."""

    timesteps: Annotated[list[_Finite], Field(min_length=1)]
    image: str
    instead: str | None
    map_missing: str | None
    map: Annotated[list[list[_Finite]], AfterValidator(_rectangular)] | None
    mask: Annotated[list[list[bool]], AfterValidator(_rectangular)] | None
    fraction: Share | None
    fraction_p: Share | None
    mean_p: Share | None
    whole_path: str | None
    whole_distance: float | None
    whole_relative: float | None
    whole_p: Share | None
    region_path: str | None
    region_distance: float | None
    region_relative: float | None
    region_p: Share | None
    matched_whole: bool
    matched_region: bool
    # rows of earlier versions lack these
    truncated: NotRequired[bool]
    words: NotRequired[list[_Word] | None]


@with_config(_STRICT)
class _Guarded(_Image):
    """A row of the stage `images` of a run with a guard."""

    step: str
    returned_p: Share
    guard_evaluations: Annotated[_Finite, Field(ge=0)]
    returned_whole_path: str | None
    returned_whole_distance: float | None
    returned_whole_relative: float | None
    returned_whole_p: Share | None
    returned_region_path: str | None
    returned_region_distance: float | None
    returned_region_relative: float | None
    returned_region_p: Share | None
    returned_matched_whole: bool
    returned_matched_region: bool


@with_config(_STRICT)
class _Scored(_Judged):
    """A row of the stage `scores`."""

    made_by: str
    level: Literal["none", "unknown", "suspected", "corroborated", "confirmed"]
    region: bool
    repeated: bool
    # rows of earlier versions lack these
    fdr: NotRequired[_Rate | None]
    fpr_given: NotRequired[_Rate]


_ABOUT: TypeAdapter[Any] = TypeAdapter(_About)
_ROWS: dict[str, TypeAdapter[Any]] = {
    "images": TypeAdapter(list[_Image]),
    "guarded images": TypeAdapter(list[_Guarded]),
    "scores": TypeAdapter(list[_Scored]),
}


def check_about(about: Any, folder: Path) -> None:
    """Refuse a run.json that lacks something.

    Raises:
        UsageError: naming the first place.
    """
    # JSON has no tuples
    held = about | {"index": tuple(about["index"])} if isinstance(about.get("index"), list) else about
    try:
        _ABOUT.validate_python(held)
    except ValidationError as error:
        raise UsageError(f"{folder / 'run.json'} is damaged or edited: {_first(error)}; audit again") from None
    if len(set(about["prompts"])) < len(about["prompts"]):
        raise UsageError(f"{folder / 'run.json'} is damaged or edited: prompts are repeated; audit again")


def check_rows(
    rows: Sequence[Mapping[str, Any]],
    stage: Literal["images", "scores"],
    units: Sequence[tuple[str, int]],
    folder: Path,
    *,
    guarded: bool = False,
) -> None:
    """Refuse rows of a finished stage that are not those of its images.

    Args:
        rows: of all batches of the stage.
        stage: whose rows they are.
        units: prompt and seed of every image of the run, in their order.
        folder: of the run.
        guarded: whether they must say what a guard returned.

    Raises:
        UsageError: naming the first place, and what to delete so that `audit` makes the rows again.
    """
    place = folder / stage
    fix = "delete that folder, and run `cryptomnesia audit` with the same settings to make it again"
    try:
        _ROWS["guarded images" if guarded else stage].validate_python(rows)
    except ValidationError as error:
        raise UsageError(f"{place} is damaged or edited: {_first(error)}; {fix}") from None
    if [(row["prompt"], row["seed"]) for row in rows] != list(units):
        raise UsageError(f"{place} holds {len(rows)} rows that are not of the {len(units)} images of the run; {fix}")
    grids = [(row["map"], row["mask"]) for row in rows if row.get("map") is not None and row.get("mask") is not None]
    if any((len(heat), len(heat[0])) != (len(mask), len(mask[0])) for heat, mask in grids):
        raise UsageError(f"{place} is damaged or edited: a map and its mask differ in size; {fix}")


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in words."""
    detail = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in detail["loc"])
    value = repr(detail["input"])
    got = "" if detail["type"] == "missing" else f", got {value if len(value) <= 40 else f'{value[:37]}...'}"
    return f"{place}: {detail['msg'].removeprefix('Value error, ')}{got}"
