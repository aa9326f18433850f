"""Carry a job's metrics to an experiment tracker, from the user's side and with the user's own credentials.

`sink` says what a tracker has to do, `follow` reads the job, and each tracker has a module of its own whose library is
imported when it is opened. The daemon knows nothing of it.
"""
