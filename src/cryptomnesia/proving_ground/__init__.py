"""A model whose truth is known: captioned scenes, planted duplicates, training, and the bundled result."""

from pathlib import Path

BUNDLE = Path(__file__).parent / "bundle"
"""The bundled model: `pipeline/` and `early/` (stock diffusers folders), `manifest.json`, `planted/`,
`calibration.safetensors`."""
