"""Training: presets, off-the-shelf agents with tuned settings, sweeps, recorded episodes."""
