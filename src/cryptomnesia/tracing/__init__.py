"""Watch what a pipeline does while it generates: record every denoiser evaluation, and steer the solver."""
