"""The checks of `doctor` that are made where it is called: this machine, the way to the daemon, the daemon's answer."""
