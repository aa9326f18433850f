"""The daemon: its loop (requests, plans and reports) and its life from start to drain."""
