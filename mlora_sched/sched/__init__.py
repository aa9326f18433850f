"""Who trains next: pure functions from a snapshot to a plan. No torch, SQL, clock or I/O."""
