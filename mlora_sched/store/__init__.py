"""What outlives a process: jobs, their metrics and events, in one SQLite file. The only package that knows SQL."""
