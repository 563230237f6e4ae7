"""Where a model comes from: places, networks, adapters, and what can go wrong while they are loaded."""
