"""What levels of evidence mean, in words."""

from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import Outcome


def meanings(found: Outcome) -> dict[Level, str]:
    """What every level means in this run, strongest first."""
    return {
        Level.confirmed: "No training images were compared, so that nothing could be confirmed."
        if found.about["index"] is None
        else "A picture, or its memorized region, is nearer to a training image than pictures like it are by chance. "
        "Only this means memorized.",
        Level.corroborated: "A second signal says the same as the score: the map of the picture, or the same pixels "
        "from several seeds.",
        Level.suspected: f"A score that at most {100 * found.rate:g}% of ordinary images reach.",
        Level.unknown: "No score could be given. That is not the same as nothing found.",
        Level.none: "Scores like those of ordinary images, for these prompts and seeds.",
    }
