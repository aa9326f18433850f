"""The HTTP face of the daemon. It meets the scheduling loop only in the store and never imports a worker."""
