"""Verbs that ask a daemon, one file a verb; they know the client, never the store or the engine."""
