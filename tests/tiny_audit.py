"""Arguments of audits of a random miniature."""

EVIL = (
    "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(2)> =HYPERLINK(1) "
    "[x](javascript:alert) {0} \x1b[2J"
)
"""A prompt that would run if a report made it part of its code."""


def settings(base, **more):
    """Arguments of `audit` but for the output: a model's folder, three different prompts and 102 references."""
    usual = {
        "model": str(base / "tiny"),
        "prompts": base / "prompts.txt",
        "references": base / "references.txt",
        "steps": 3,
        "guidance": 2.0,
        "detector": "drift",
        "fpr": 0.5,
        "batch_size": 4,
    }
    return usual | more
