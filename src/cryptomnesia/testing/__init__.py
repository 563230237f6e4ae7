"""What tests of methods need, also those of other packages: named checks, closed forms and miniature pipelines."""

from cryptomnesia.testing.checks import Check, CheckError, run_checks
from cryptomnesia.testing.detector_checks import check_detector
from cryptomnesia.testing.localizer_checks import check_localizer

__all__ = ["Check", "CheckError", "check_detector", "check_localizer", "run_checks"]
