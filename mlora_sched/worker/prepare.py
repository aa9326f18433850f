"""The preparer's program: reads, checks and tokenises jobs' data into the cache, apart from training.

It loads the base's tokenizer only. A tokenizer that dies on somebody's row takes this process down, not the trainer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mlora_sched.data.cursor import Cursor
from mlora_sched.data.tokens import load_tokenizer, prepare
from mlora_sched.errors import DataError, MloraError, NotFound, SpecError
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import Command, Fatal, JobFailed, JobStart, Prepare, Prepared, Report, Shutdown
from mlora_sched.worker.handshake import IDLE_SECONDS, first_command
from mlora_sched.worker.protocol import Channel, worker_end


def prepare_job(start: JobStart, tokenizer: Any) -> Prepared | JobFailed:
    """Tokenise one job's data; what is wrong with it becomes the job's failure."""
    files = {name: Path(path) for name, path in start.files.items()}
    try:
        data = prepare(start.spec, files, tokenizer, Path(start.cache_dir))
    except (DataError, NotFound, SpecError) as error:
        code = ErrorCode.BAD_SPEC if isinstance(error, SpecError) else ErrorCode.BAD_DATA
        return JobFailed(job_id=start.job_id, epoch=start.epoch, code=code, message=error.message)
    except OSError as error:
        message = f"its data cannot be kept: {error}"
        return JobFailed(job_id=start.job_id, epoch=start.epoch, code=ErrorCode.STORAGE, message=message)
    training = start.spec.training
    cursor = Cursor(len(data.train), training.batch_size, training.seed, start.spec.data.shuffle)
    return Prepared(
        job_id=start.job_id,
        epoch=start.epoch,
        rows=data.stats.rows,
        validation_rows=data.stats.validation_rows,
        tokens=data.stats.tokens,
        truncated=data.stats.truncated,
        total_steps=training.total_steps(cursor.steps_per_epoch),
    )


def serve(channel: Channel[Command, Report]) -> int:
    """Prepare jobs one after another until told to stop. Returns the process's exit code."""
    init = first_command(channel)
    if init is None:
        return 0
    try:
        tokenizer = load_tokenizer(init.config.base)
    except MloraError as error:
        channel.write(Fatal(error=type(error).__name__, message=error.message))
        return error.exit_code
    while not channel.closed:
        for command in channel.read(IDLE_SECONDS):
            if isinstance(command, Prepare):
                channel.write(prepare_job(command.start, tokenizer))
            elif isinstance(command, Shutdown):
                return 0
    return 0


@click.command()
@click.option("--fd", type=int, required=True, help="File descriptor of the pipe to the daemon.")
def main(fd: int) -> None:
    """Prepare data for the daemon at the other end of a pipe."""
    sys.exit(serve(worker_end(fd)))


if __name__ == "__main__":
    main()
