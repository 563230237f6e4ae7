"""What an audit is to do: settings, model, methods, prompts and training images, loaded and seen to fit together."""

import logging
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptomnesia.attribution import check_captions
from cryptomnesia.auditing.outcome import check_gate, units_of
from cryptomnesia.auditing.requests import Request
from cryptomnesia.auditing.scoring import check_second_signal
from cryptomnesia.auditing.store import CALIBRATION
from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.fitting import check_references
from cryptomnesia.calibration.likeness import texts_unlike
from cryptomnesia.calibration.stored import Calibration, calibration_of
from cryptomnesia.detection import Examination
from cryptomnesia.detectors import Detector
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.engine import LOCAL
from cryptomnesia.errors import UsageError
from cryptomnesia.guarding.policies import Policy, policy_of
from cryptomnesia.localizers import Localizer
from cryptomnesia.localizers import localizer as localizer_of
from cryptomnesia.matching import SSCD, Descriptor, ImageIndex, Tiles
from cryptomnesia.matching.reproduction import check_size
from cryptomnesia.matching.sources import as_text, check_source, ordered
from cryptomnesia.mitigations import Mitigation
from cryptomnesia.mitigations import mitigation as mitigation_of
from cryptomnesia.mitigations.base import check_sight
from cryptomnesia.pipelines.call import NEUTRAL, canonical, defaults_of
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.loading import pipeline_of
from cryptomnesia.pipelines.origins.options import SETTINGS
from cryptomnesia.pipelines.setup import Method, Setup, describe
from cryptomnesia.places import exists, is_remote
from cryptomnesia.prompts import read_prompts
from cryptomnesia.settings import AuditSettings
from cryptomnesia.statistics import needed_references, null_size
from cryptomnesia.tracing.generation import check_call, kept_prompts
from cryptomnesia.tracing.trajectory import evaluation

logger = logging.getLogger("cryptomnesia")

Progress = Callable[[str, float, int], None]
"""Called with the stage, how much of it is done, and how much there is."""

Unit = tuple[str, int]
"""Prompt and seed of an image."""

_NAMED = 20
"""Files that the index does not hold, named in a run at most."""


@dataclass(frozen=True)
class Plan:
    """A loaded model and what is to be done with it.

    Attributes:
        settings: of the run.
        setup: the pipeline and the settings of its calls.
        call: arguments of every call for which there is no setting, by the pipeline's names.
        prompts: to audit, each once.
        references: captions that are not memorized, to calibrate on; None if a calibration is given.
        detector: by whose score images are suspected.
        localizer: of flagged images, or None.
        mitigation: of flagged images, or None.
        policy: of the guard whose effect is reported, or None.
        calibration: that is given; None if it is made from references, or if the run already holds it.
        index: of training images, or None.
        unlike: how the prompts differ visibly from the references, in sentences.
        null: the number of scores that the scores of images are compared with.
    """

    settings: AuditSettings
    setup: Setup
    call: Mapping[str, Any]
    prompts: list[str]
    references: list[str] | None
    detector: Detector
    localizer: Localizer | None
    mitigation: Mitigation | None
    policy: Policy | None
    calibration: Calibration | None
    index: ImageIndex | None
    unlike: list[str]
    null: int

    @property
    def units(self) -> list[Unit]:
        """Those of the run."""
        return units_of(self.prompts, self.settings)

    @cached_property
    def about(self) -> dict[str, Any]:
        """Everything that the results depend on, as JSON values."""
        skipped = {} if self.index is None else self.index.skipped
        methods = {"detector": self.detector, "localizer": self.localizer, "mitigation": self.mitigation}
        return {
            # options are arguments of the call, and a run may go on on another device
            "settings": self.settings.model_dump(mode="json", exclude={"device", "option"}),
            "call": {name: canonical(name, value) for name, value in sorted(self.call.items())},
            "model": model_name(self.settings, self.setup.pipe),
            "methods": {role: None if method is None else method.name for role, method in methods.items()},
            "made_by": {role: None if method is None else method.describe() for role, method in methods.items()},
            "observes": {role: None if method is None else method.observes for role, method in methods.items()},
            "guard": None if self.policy is None else describe(self.policy),
            "prompts": self.prompts,
            "fingerprint": self.setup.fingerprint,
            "weights": weights_digest(self.setup.pipe),
            "references": self.references,
            "index": None if self.index is None else [self.index.descriptor.name, len(self.index)],
            "skipped": {as_text(path): why for path, why in list(ordered(skipped).items())[:_NAMED]},
            "skipped_count": len(skipped),
            "unlike": self.unlike,
            "null": self.null,
            "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")}
            | {"python": platform.python_version()},
        }

    def examination(self, calibration: Calibration) -> Examination:
        """What generates and judges the images, with the run's calibration.

        Raises:
            UsageError: if the calibration does not fit.
        """
        examination = Examination.of(
            self.setup,
            calibration,
            detector=self.detector,
            fpr=self.settings.fpr,
            localizer=self.localizer,
            mitigation=self.mitigation,
            words=self.settings.words,
            batch_size=self.settings.batch_size,
            policy=self.policy,
        )
        if self.localizer is not None:
            try:
                calibration.map_reference(self.localizer).threshold(self.settings.pixel_fpr)
            except UsageError as error:
                raise UsageError(
                    f"{error}; or audit without maps (--no-localize, or localize=False in Python)"
                ) from None
        return examination


def plan(
    request: Request, folder: Path | None = None, progress: Progress | None = None, *, indexed: bool = False
) -> Plan:
    """Load what a request names, and see that everything fits together.

    Args:
        request: the audit.
        folder: of the run, where an index of `settings.training_images` is made; without one no index is made.
        progress: called while an index is made.
        indexed: whether the index of `settings.training_images` was just made, by `make_index`.

    Raises:
        UsageError: for what is missing or does not fit.
    """
    found = checked(request, folder)
    return replace(found, index=_index(found.settings, folder, progress, indexed=indexed))


def checked(request: Request, folder: Path | None = None) -> Plan:
    """A plan without an index; arguments as for `plan`.

    Raises:
        UsageError: for what is missing or does not fit.
    """
    settings = request.settings
    prompts = request.texts()
    references = None if request.references is None else list(request.references)
    if references is None and settings.references is not None:
        references = read_prompts(settings.references)
    policy = _policy(request)
    _check_training_images(settings, folder)
    if isinstance(request.model, str | Path):
        pipe = pipeline_of(settings)
    else:
        pipe = request.model
    _check_names(pipe, request.call)
    setup = Setup.of(
        pipe,
        {
            **request.call,
            **{name: getattr(settings, setting) for name, setting in SETTINGS.items()},
        },
    )
    check_call(setup)
    prompts, references = _kept_texts(setup, prompts, references, settings)
    detector = detector_of(request.objects.get("detector", settings.detector), setup)
    setup.check([detector])
    calibration = _calibration(request, setup, folder)
    judging = calibration or _held(settings, folder)
    localizer = _localizer(request, setup, judging)
    mitigation = _mitigation(request, setup, policy)
    if mitigation is not None:
        # what it takes of the calibration is checked as soon as there is one
        check_sight(mitigation, detector)
    evaluations = setup.evaluations
    if evaluations is not None:
        if (earliest := detector.earliest(evaluations)) > evaluations:
            raise UsageError(
                f"{detector.name} needs {earliest} evaluations before there is a score, and a run of "
                f"{setup.sampling.steps} steps has {evaluations}; give more steps, or another detector"
            )
        for place in () if localizer is None else localizer.evaluations:
            evaluation(place, evaluations)
    if settings.words:
        check_captions(setup)
    if localizer is not None:
        check_second_signal(detector.name, detector.observes, localizer.name, localizer.observes)
    check_gate(settings, localized=localizer is not None, guarded=policy is not None)
    captions = Captions.read_by(setup.family, references or []) if judging is None else judging.captions
    found = Plan(
        settings=settings,
        setup=setup,
        call=request.call,
        prompts=prompts,
        references=references,
        detector=detector,
        localizer=localizer,
        mitigation=mitigation,
        policy=policy,
        calibration=calibration,
        index=None,
        unlike=list(texts_unlike(prompts, captions).values()),
        null=null_size(len(captions)) if judging is None else len(judging.others),
    )
    for reason in (*found.unlike, *_too_few(found)):
        logger.warning("%s", reason)
    if found.calibration is not None:
        found.examination(found.calibration)
    return found


def _too_few(found: Plan) -> list[str]:
    """What the references are too few for, in a sentence: to find a single prompt among many.

    Raises:
        UsageError: if they are too few to find all of them.
    """
    settings = found.settings
    if settings.fdr is None:
        return []
    wanted = settings.fdr / (len(found.prompts) * settings.images_per_prompt)
    least = math.ceil(1 / ((found.null + 1) * wanted) - 1e-9)
    if least <= 1:
        return []
    if least > len(found.prompts):
        raise UsageError(
            f"a false-discovery rate of {settings.fdr:g} needs smaller p-values than {found.null} scores in the null "
            f"can give, even if all {len(found.prompts)} prompts were memorized; calibrate on "
            f"{needed_references(wanted)} prompts, or give a higher rate"
        )
    return [
        f"at a false-discovery rate of {settings.fdr:g} prompts are suspected only if {least} of {len(found.prompts)} "
        f"or more have the smallest p-value; to find a single one, calibrate on {needed_references(wanted)} prompts"
    ]


def _check_names(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuse names that are neither settings of an audit nor arguments of the pipeline's call."""
    if not call:
        return
    # refuses what is no pipeline
    family_of(pipe)
    arguments = sorted(defaults_of(pipe).keys() - NEUTRAL - AuditSettings.model_fields.keys())
    if unknown := sorted(call.keys() - defaults_of(pipe).keys()):
        known = [*AuditSettings.model_fields, *arguments]
        guesses = [(name, get_close_matches(name, known, n=1)) for name in unknown]
        named = ", ".join(f"{name} (did you mean {guess[0]}?)" if guess else name for name, guess in guesses)
        raise UsageError(
            f"got the unknown setting {named}; known are the settings {', '.join(AuditSettings.model_fields)}, and the "
            f"arguments of a {type(pipe).__name__}'s call {', '.join(arguments)}"
        )


def model_name(settings: AuditSettings, pipe: Any) -> str:
    """The name of the model for reports: as it was given, or where the pipeline says that it was loaded from."""
    return settings.model or getattr(pipe, "config", {}).get("_name_or_path") or type(pipe).__name__


def _kept_texts(
    setup: Setup, prompts: list[str], references: list[str] | None, settings: AuditSettings
) -> tuple[list[str], list[str] | None]:
    """The prompts and references, without those that are too long if they are to be left out.

    Raises:
        UsageError: for prompts that the model cannot read, and references that cannot serve as such.
    """
    conditional = setup.family.conditional
    if conditional:
        if any(not prompt.strip() for prompt in prompts):
            raise UsageError("got an empty prompt; give a text")
        prompts = kept_prompts(setup, prompts, settings.long)
        references = None if references is None else kept_prompts(setup, references, settings.long)
    if references is not None:
        check_references(references, repeated=not conditional, fpr=settings.fpr)
        if conditional and (both := set(references) & set(prompts)):
            raise UsageError(f"{len(both)} prompts are references as well, {min(both)!r} for one; take them out")
    return prompts, references


def _check_training_images(settings: AuditSettings, folder: Path | None) -> None:
    """Refuse training images that are not there, or that the run would be written among."""
    if settings.training_images is None or _holds_index(folder):
        return
    check_source(settings.training_images)
    if folder is None or is_remote(folder):
        return
    if folder.resolve().is_relative_to(settings.training_images.resolve()):
        raise UsageError(f"{folder} is among the training images, which would match it; give another folder")


def _localizer(request: Request, setup: Setup, calibration: Calibration | None) -> Localizer | None:
    """The localizer of the run; `auto` leaves maps out where none of the defaults works, or its maps have no reference.

    Args:
        request: the audit.
        setup: of its calls.
        calibration: that the run is judged by, None if it is to be made in the run, with the maps.
    """
    settings = request.settings
    if not settings.localize:
        return None
    wanted = request.objects.get("localizer", settings.localizer)
    try:
        found = localizer_of(wanted, setup)
    except UsageError as error:
        return _left_out(wanted, error)
    if "checkpoint" in found.requires:
        raise UsageError(f"an audit has no second checkpoint, which {found.name} needs; give another localizer")
    setup.check([found])
    if wanted == "auto" and calibration is not None and found.name not in calibration.maps:
        try:
            calibration.check_localizers([found])
        except UsageError as error:
            return _left_out(wanted, error)
    return found


def _policy(request: Request) -> Policy | None:
    """The policy of the guard whose effect is to be reported, None without one.

    Raises:
        UsageError: for a policy that changes no image, and for one that has no use for the mitigation, or none to use.
    """
    settings = request.settings
    given = request.objects.get("guard", settings.guard)
    if given is None:
        return None
    policy = policy_of(given)
    if not policy.acts:
        raise UsageError(
            f"got the guard {policy.name}, which returns every image as it is, so that there is no rate with a "
            "safeguard; give another policy, or leave it out"
        )
    named = request.objects.get("mitigation", settings.mitigation) != "auto"
    if policy.mitigates and not settings.mitigate:
        raise UsageError(
            f"got the guard {policy.name}, which needs a mitigation, and mitigate = False; leave one of them out"
        )
    if named and not policy.mitigates:
        raise UsageError(f"got a mitigation with the guard {policy.name}, which uses none; leave one of them out")
    return policy


def _mitigation(request: Request, setup: Setup, policy: Policy | None) -> Mitigation | None:
    """The mitigation of the run; without a guard `auto` leaves it out where none of the defaults works."""
    settings = request.settings
    if not settings.mitigate or (policy is not None and not policy.mitigates):
        return None
    wanted = request.objects.get("mitigation", settings.mitigation)
    try:
        return mitigation_of(wanted, setup)
    except UsageError as error:
        if policy is not None:
            raise
        return _left_out(wanted, error)


def _left_out(wanted: str | Method, error: UsageError) -> None:
    """Leave a part of the audit out that was not asked for by name."""
    if wanted != "auto":
        raise error
    logger.warning("the audit goes on without it: %s", error)


def _calibration(request: Request, setup: Setup, folder: Path | None) -> Calibration | None:
    """The calibration that is given, or the one beside the model; None if it is made in the run, or there already."""
    settings = request.settings
    if settings.references is not None:
        return None
    if _holds_calibration(folder):
        return None
    if (given := request.objects.get("calibration")) is not None:
        if not isinstance(given, Calibration):
            raise UsageError(f"got {given!r} as calibration; give a calibration or its file")
        return given
    path = settings.calibration or calibration_of(setup.pipe)
    if path is None:
        raise UsageError(
            "got no calibration, and there is none beside the model; give references (captions that are not "
            "memorized), or a calibration that `cryptomnesia calibrate` made from such captions"
        )
    return Calibration.load(path)


def _held(settings: AuditSettings, folder: Path | None) -> Calibration | None:
    """The calibration that was given to the run in `folder` when it began, None if there is none."""
    if folder is None or settings.references is not None or not _holds_calibration(folder):
        return None
    return Calibration.load(folder / CALIBRATION)


def _holds_index(folder: Path | None) -> bool:
    """Whether there is a run in `folder` with a finished index of its own, as it was when the run began."""
    return folder is not None and exists(folder / "run.json") and exists(folder / "index" / "index.json")


def _holds_calibration(folder: Path | None) -> bool:
    """Whether there is a run in `folder` that holds its calibration."""
    return folder is not None and exists(folder / "run.json") and exists(folder / CALIBRATION)


def needs_index(settings: AuditSettings, folder: Path) -> bool:
    """Whether an index of training images has to be made before the run in `folder` can begin."""
    return settings.training_images is not None and not _holds_index(folder)


def make_index(
    settings: AuditSettings,
    folder: Path,
    progress: Progress | None,
    *,
    engine: str = LOCAL,
    workers: int | None = None,
) -> ImageIndex:
    """Make the index of `settings.training_images` in the folder of the run.

    Raises:
        UsageError: as `ImageIndex.build` does.
    """
    assert settings.training_images is not None
    report = None if progress is None else partial(progress, "index")
    place, descriptor = folder / "index", _descriptor(settings)
    return ImageIndex.build(
        settings.training_images, place, descriptor, engine=engine, workers=workers, progress=report
    )


def _index(
    settings: AuditSettings, folder: Path | None, progress: Progress | None, *, indexed: bool
) -> ImageIndex | None:
    """The index of training images, made in the run's folder if only their folder is given."""
    if settings.index is not None:
        index = ImageIndex(settings.index, _descriptor(settings))
    elif settings.training_images is None or folder is None:
        return None
    elif indexed or not needs_index(settings, folder):
        index = ImageIndex(folder / "index", _descriptor(settings))
    else:
        index = make_index(settings, folder, progress)
    check_size(len(index), settings.fpr)
    return index


def _descriptor(settings: AuditSettings) -> Descriptor:
    """The descriptor of the training images."""
    return Tiles() if settings.sscd is None else SSCD(settings.sscd)
