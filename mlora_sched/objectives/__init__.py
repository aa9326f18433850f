"""Losses, one file an objective. Only `sft` exists yet: its weights are all the head needs."""
