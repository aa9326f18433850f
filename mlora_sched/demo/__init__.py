"""The parts of `mlora-sched demo`: a real daemon, real jobs from `jobs/`, and measurements of what came out.

Everything goes through the doors that users have: the daemon is a subprocess, the jobs are submitted by the client.
"""
