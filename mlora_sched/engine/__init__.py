"""Training: one packed step, the state of one job, and the loop that a slice of service runs.

No files are written here (see `artifacts`), no policy decided (see `sched`), nothing sent (see `worker`).
"""
