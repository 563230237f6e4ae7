"""The settings of a generation and of the commands. Importing this room loads neither torch nor diffusers.

Every setting is declared once, as a field of a class in `commands`. The docstring under the field is its description,
also in the help of the command line, where `cryptomnesia.cli.options` turns fields into flags.
"""

from cryptomnesia.settings.base import MOST_IMAGES as MOST_IMAGES
from cryptomnesia.settings.base import OTHER_VARIABLES as OTHER_VARIABLES
from cryptomnesia.settings.base import PREFIX as PREFIX
from cryptomnesia.settings.base import Long as Long
from cryptomnesia.settings.base import Sampling as Sampling
from cryptomnesia.settings.base import Settings as Settings
from cryptomnesia.settings.base import variable_name as variable_name
from cryptomnesia.settings.commands import AuditSettings as AuditSettings
from cryptomnesia.settings.commands import BenchAttackSettings as BenchAttackSettings
from cryptomnesia.settings.commands import BenchDetectSettings as BenchDetectSettings
from cryptomnesia.settings.commands import BenchLocalizeSettings as BenchLocalizeSettings
from cryptomnesia.settings.commands import BenchMitigateSettings as BenchMitigateSettings
from cryptomnesia.settings.commands import BuildSettings as BuildSettings
from cryptomnesia.settings.commands import CalibrateSettings as CalibrateSettings
from cryptomnesia.settings.commands import CallSettings as CallSettings
from cryptomnesia.settings.commands import DemoSettings as DemoSettings
from cryptomnesia.settings.commands import DetectSettings as DetectSettings
from cryptomnesia.settings.commands import DuplicatesSettings as DuplicatesSettings
from cryptomnesia.settings.commands import FindSettings as FindSettings
from cryptomnesia.settings.commands import FinetuneSettings as FinetuneSettings
from cryptomnesia.settings.commands import FlaggedSettings as FlaggedSettings
from cryptomnesia.settings.commands import GenerateSettings as GenerateSettings
from cryptomnesia.settings.commands import GuardSettings as GuardSettings
from cryptomnesia.settings.commands import ImageSettings as ImageSettings
from cryptomnesia.settings.commands import IndexSettings as IndexSettings
from cryptomnesia.settings.commands import JudgeSettings as JudgeSettings
from cryptomnesia.settings.commands import LocalizeSettings as LocalizeSettings
from cryptomnesia.settings.commands import MakeCanariesSettings as MakeCanariesSettings
from cryptomnesia.settings.commands import MapSettings as MapSettings
from cryptomnesia.settings.commands import MaskSettings as MaskSettings
from cryptomnesia.settings.commands import MatchSettings as MatchSettings
from cryptomnesia.settings.commands import MeasureCanariesSettings as MeasureCanariesSettings
from cryptomnesia.settings.commands import MitigationSettings as MitigationSettings
from cryptomnesia.settings.commands import PlaceSettings as PlaceSettings
from cryptomnesia.settings.commands import PromptSettings as PromptSettings
from cryptomnesia.settings.commands import RunSettings as RunSettings
from cryptomnesia.settings.commands import TrialSettings as TrialSettings
