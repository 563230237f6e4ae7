"""What is usual for a set-up: conformal p-values, thresholds and masks."""
