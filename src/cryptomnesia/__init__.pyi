from .attribution import Attributed as Attributed
from .attribution import Word as Word
from .attribution import attribute as attribute
from .auditing.audited import audit as audit
from .auditing.store import Store as Store
from .calibration.fitting import calibrate as calibrate
from .calibration.flag_rate import FlagRate as FlagRate
from .calibration.masks import Mask as Mask
from .calibration.stored import Calibration as Calibration
from .detection import Finding as Finding
from .detection import detect as detect
from .detectors.base import Detector as Detector
from .detectors.base_difference import BaseDifference as BaseDifference
from .detectors.combined import Combined as Combined
from .detectors.drift import Drift as Drift
from .detectors.early_detail import EarlyDetail as EarlyDetail
from .detectors.guidance_magnitude import GuidanceMagnitude as GuidanceMagnitude
from .detectors.information import Information as Information
from .detectors.map_mean import MapMean as MapMean
from .detectors.stability import Stability as Stability
from .detectors.stability_or_drift import StabilityOrDrift as StabilityOrDrift
from .errors import CryptomnesiaError as CryptomnesiaError
from .errors import UsageError as UsageError
from .finding.answers import Answer as Answer
from .finding.answers import Found as Found
from .finding.verb import find as find
from .finetuning.callbacks import CopyingMeter as CopyingMeter
from .finetuning.canaries.asking import measure_canaries as measure_canaries
from .finetuning.canaries.planting import make_canaries as make_canaries
from .finetuning.canaries.planting import remove_canaries as remove_canaries
from .finetuning.canaries.result import DoseResponse as DoseResponse
from .finetuning.course import Course as Course
from .finetuning.trainers import CopyingCallback as CopyingCallback
from .finetuning.verb import finetune as finetune
from .guarding.guarded import Guard as Guard
from .guarding.guarded import guard as guard
from .guarding.policies import (
    Block as Block,
)
from .guarding.policies import (
    Escalate as Escalate,
)
from .guarding.policies import (
    Mitigate as Mitigate,
)
from .guarding.policies import (
    Observe as Observe,
)
from .guarding.policies import (
    Policy as Policy,
)
from .guarding.policies import (
    Regenerate as Regenerate,
)
from .localization import Located as Located
from .localization import localize as localize
from .localizers.base import Localizer as Localizer
from .localizers.base import Map as Map
from .localizers.bright_ending import BrightEnding as BrightEnding
from .localizers.collapse import Collapse as Collapse
from .localizers.curvature import Curvature as Curvature
from .localizers.curvature import CurvatureDifference as CurvatureDifference
from .localizers.jacobian.diagonal import DiagonalEstimator as DiagonalEstimator
from .localizers.score_difference import GuidanceMap as GuidanceMap
from .localizers.score_difference import ScoreDifference as ScoreDifference
from .localizers.settled_detail import SettledDetail as SettledDetail
from .matching.index import ImageIndex as ImageIndex
from .matching.matched import match as match
from .matching.reproduction import Matches as Matches
from .mitigations.attention_reweighting import AttentionReweighting as AttentionReweighting
from .mitigations.base import Correction as Correction
from .mitigations.base import Mitigation as Mitigation
from .mitigations.condition_annealing import ConditionAnnealing as ConditionAnnealing
from .mitigations.embedding_descent import EmbeddingDescent as EmbeddingDescent
from .mitigations.guidance_delay import GuidanceDelay as GuidanceDelay
from .mitigations.initial_noise import InitialNoise as InitialNoise
from .mitigations.pad_tokens import PadTokens as PadTokens
from .mitigations.partial_captions import PartialCaptions as PartialCaptions
from .mitigations.random_tokens import RandomTokens as RandomTokens
from .mitigations.region_restricted import RegionRestricted as RegionRestricted
from .mitigations.rephrasing import Rephrasing as Rephrasing
from .mitigations.sail import Sail as Sail
from .mitigations.stability import StabilityRule as StabilityRule
from .mitigations.stability import stabilize as stabilize
from .mitigations.stability_calibrated import StabilityCalibrated as StabilityCalibrated
from .pipelines.families import vouch as vouch
from .pipelines.loading import load_pipeline as load_pipeline
from .prompts import read_prompts as read_prompts
from .registry import Entry as Entry
from .registry import PluginError as PluginError
from .registry import methods as methods
from .settings import Sampling as Sampling
from .tracing.trajectory import Step as Step
from .tracing.trajectory import Trajectory as Trajectory
from .tracing.watching import watch as watch
from .verdicts import Verdict as Verdict

__version__: str
