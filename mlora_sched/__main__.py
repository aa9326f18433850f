"""`python -m mlora_sched` is the command `mlora-sched`."""

from mlora_sched.cli.main import main

if __name__ == "__main__":
    main()
