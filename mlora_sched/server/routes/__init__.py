"""Routers, one file a noun: they translate HTTP to calls of the store and decide nothing else."""
