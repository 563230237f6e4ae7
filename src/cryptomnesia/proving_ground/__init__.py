"""A model whose truth is known: captioned scenes, planted duplicates, training, and the bundled result."""

from pathlib import Path

BUNDLE = Path(__file__).parent / "bundles" / "scenes"
"""The folder of the bundled model.

It holds `pipeline/` and `early/` (stock diffusers folders of the trained model and of a less-trained checkpoint),
`manifest.json`, and `planted/` with the planted pictures. The calibration is `pipeline/calibration.safetensors`.
"""
