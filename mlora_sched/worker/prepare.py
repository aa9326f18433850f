"""The preparer's program: reads, checks and tokenises jobs' data into the cache, apart from training.

Of the bases it loads the tokenizers only, each when it is first needed. A tokenizer that dies on somebody's row takes
this process down, not the trainer; so does a template that asks for more and more memory. One that never ends is the
daemon's to end.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mlora_sched.data.chunk_bound import largest_chunk
from mlora_sched.data.cursor import Cursor
from mlora_sched.data.load import load_of
from mlora_sched.data.tokens import load_tokenizer, prepare
from mlora_sched.errors import DataError, MloraError, NotFound, SpecError
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import Command, JobFailed, JobStart, NoTokenizer, Prepare, Prepared, Report, Shutdown
from mlora_sched.worker.handshake import IDLE_SECONDS, first_command, run_program
from mlora_sched.worker.protocol import Channel

MEMORY_SHARE = 0.5
"""The part of the machine's memory that reading and tokenising one job's data may take."""


def yield_memory(limit: int) -> None:
    """Bound this process's own memory, and let the kernel end it before all others when the machine has none left.

    Args:
        limit: bytes of private writable memory, beyond which an allocation fails. Mapped files do not count.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    Path("/proc/self/oom_score_adj").write_text("1000")


def prepare_job(start: JobStart, tokenizer: Any) -> Prepared | JobFailed:
    """Tokenise one job's data; what is wrong with it becomes the job's failure."""
    files = {name: Path(path) for name, path in start.files.items()}
    try:
        data = prepare(start.spec, files, tokenizer, Path(start.cache_dir))
    except (DataError, NotFound, SpecError) as error:
        code = ErrorCode.BAD_SPEC if isinstance(error, SpecError) else ErrorCode.BAD_DATA
        return JobFailed(job_id=start.job_id, epoch=start.epoch, code=code, message=error.message)
    except MemoryError:
        message = "reading its data takes too much memory; look for a template that never ends, or give fewer rows"
        return JobFailed(job_id=start.job_id, epoch=start.epoch, code=ErrorCode.BAD_DATA, message=message)
    except OSError as error:
        message = f"its data cannot be kept: {error}"
        return JobFailed(job_id=start.job_id, epoch=start.epoch, code=ErrorCode.STORAGE, message=message)
    return Prepared(
        job_id=start.job_id,
        epoch=start.epoch,
        rows=data.stats.rows,
        validation_rows=data.stats.validation_rows,
        tokens=data.stats.tokens,
        truncated=data.stats.truncated,
        total_steps=start.spec.training.total_steps(Cursor.of(start.spec, data.stats.rows).steps_per_epoch),
        largest_chunk=largest_chunk(start.spec, data.train, data.validation),
        longest=max(int(rows.lengths.max()) for rows in (data.train, data.validation) if rows is not None),
        cache_entry=data.entry,
        load=load_of(start.spec, data.train, data.validation),
    )


class _Tokenizers:
    """Tokenizers by where their bases lie; they are small, and stay."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def of(self, base: str) -> Any:
        if base not in self._loaded:
            self._loaded[base] = load_tokenizer(base)
        return self._loaded[base]


def _prepared(command: Prepare, tokenizers: _Tokenizers) -> Prepared | JobFailed | NoTokenizer:
    start = command.start
    try:
        tokenizer = tokenizers.of(command.base)
    except MloraError as error:
        return NoTokenizer(job_id=start.job_id, epoch=start.epoch, message=error.message)
    return prepare_job(start, tokenizer)


def serve(channel: Channel[Command, Report]) -> int:
    """Prepare jobs one after another until told to stop. Returns the process's exit code."""
    init = first_command(channel)
    if init is None:
        return 0
    tokenizers = _Tokenizers()
    with suppress(MloraError):  # told to whose job it is needed for
        tokenizers.of(init.config.base)
    while not channel.closed:
        for command in channel.read(IDLE_SECONDS):
            if isinstance(command, Prepare):
                channel.write(_prepared(command, tokenizers))
            elif isinstance(command, Shutdown):
                return 0
    return 0


def main(channel: Channel[Command, Report]) -> int:
    """`serve` within bounds of memory."""
    yield_memory(int(psutil.virtual_memory().total * MEMORY_SHARE))
    return serve(channel)


if __name__ == "__main__":
    run_program(main)
