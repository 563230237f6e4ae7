"""From a model and prompts to a run directory full of evidence."""
