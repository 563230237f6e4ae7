"""The verb `audit`: from a model and prompts to a run directory full of evidence."""
