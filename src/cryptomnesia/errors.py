"""The errors this library raises on purpose; each message says what was got, what was expected and the fix."""


class CryptomnesiaError(Exception):
    """Base class of every error raised on purpose."""


class UsageError(CryptomnesiaError, ValueError):
    """An argument, file or model that cannot be used as given."""


class NotFiniteError(UsageError):
    """The model's output holds NaN or infinity."""
