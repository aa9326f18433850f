"""Verbs that work without a daemon, one file a verb; each is imported only when it is called."""
