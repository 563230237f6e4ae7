"""Models whose truth is known: captioned pictures, planted duplicates, training, and the bundled results."""

from pathlib import Path

BUNDLES = Path(__file__).parent / "bundles"
"""The folder of the bundled models, each in a folder that has the name of its proving ground."""

BUNDLE = BUNDLES / "scenes"
"""The folder of the bundled model that is meant when no ground is named.

It holds `pipeline/` and `early/` (stock diffusers folders of the trained model and of a less-trained checkpoint),
`manifest.json`, and `planted/` with the planted pictures. The calibration is `pipeline/calibration.safetensors`.
"""
