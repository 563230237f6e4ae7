"""Settings of audits of a random miniature."""

from cryptomnesia.audit.settings import Settings


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
