"""What tests of methods need, also those of other packages: named checks, closed forms and miniature pipelines.

`check_detector`, `check_localizer`, `check_mitigation` and `check_family` give the checks of a method or a family, each
with a name. Call them one after the other, hand them all to `run_checks`, or parametrize a test of pytest with them.
"""

from cryptomnesia.testing.checks import Check, CheckError, run_checks
from cryptomnesia.testing.detector_checks import check_detector
from cryptomnesia.testing.family_checks import check_family
from cryptomnesia.testing.localizer_checks import check_localizer
from cryptomnesia.testing.mitigation_checks import check_mitigation

__all__ = ["Check", "CheckError", "check_detector", "check_family", "check_localizer", "check_mitigation", "run_checks"]
