"""Measures of a trained model. Held-out loss while training is the engine's own work."""
