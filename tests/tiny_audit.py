"""Settings of audits of a random miniature."""

from cryptomnesia.auditing.options import Settings

EVIL = (
    "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(2)> =HYPERLINK(1) "
    "[x](javascript:alert) {0} \x1b[2J"
)
"""A prompt that would like to run."""


def settings(base, **more):
    usual = {
        "model": str(base / "tiny"),
        "prompts": base / "prompts.txt",
        "references": base / "references.txt",
        "steps": 3,
        "guidance": 2.0,
        "rate": 0.5,
        "batch_size": 4,
    }
    return Settings(**usual | more)
