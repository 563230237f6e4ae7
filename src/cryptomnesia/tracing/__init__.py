"""What a generation does: watch it, record it, steer its solver."""
