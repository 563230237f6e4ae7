"""A model whose truth is known: captioned scenes, planted duplicates, training, and the bundled result."""

from pathlib import Path

BUNDLE = Path(__file__).parent / "bundle"
"""The folder of the bundled model.

It holds `pipeline/` and `early/` (stock diffusers folders of the trained model and of a less-trained checkpoint; the first
also has the `calibration.safetensors` of the model), `manifest.json`, and `planted/` with the planted pictures.
"""
