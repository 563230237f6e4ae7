"""The user's pipeline: loading, calling, the denoiser as a function, noise schedule, fingerprint, families."""
