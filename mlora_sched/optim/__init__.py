"""Optimisers and schedules of single jobs. Nothing here sees a pack."""
