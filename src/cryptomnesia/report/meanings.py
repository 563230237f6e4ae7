"""What an outcome means, in words."""

from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import Outcome


def meanings(found: Outcome) -> dict[Level, str]:
    """What every level of evidence means in this run, strongest first."""
    return {
        Level.confirmed: "No training images were compared, so that nothing could be confirmed."
        if found.about["index"] is None
        else "A picture, or its memorized region, is nearer to a training image than pictures like it are by chance. "
        "Only this means memorized.",
        Level.corroborated: "A second signal agrees with the score: the map of the picture, or the same pixels from "
        "several seeds.",
        Level.suspected: f"At most {100 * found.fpr:.3g}% of ordinary images have a score as high as this."
        + ("" if found.fdr is None else f" Of the suspected prompts at most {100 * found.fdr:g}% should be ordinary."),
        Level.unknown: "No score could be given. That is not the same as nothing found.",
        Level.none: "The scores are like those of ordinary images, for these prompts and seeds.",
    }


def notes(found: Outcome) -> list[str]:
    """What a reader has to know besides: methods and maps that are missing, and prompts unlike the references."""
    lines = [f"not in this installation: {method} ({reason})" for method, reason in found.missing.items()]
    if found.unmapped:
        lines.append(f"{found.unmapped} flagged images have no map: the network's output was not finite there")
    return lines + found.unlike
