"""A virtual environment in which the `mixlora` package runs, with the older transformers that it needs.

Nothing is shared with the environment that calls: its optional packages would be found, and do not go with these.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
OLDEST_WITHOUT = (3, 13)  # numpy 1.26 and tokenizers 0.19 have wheels up to Python 3.12


def python_of(directory: Path, torch: str, torch_args: str = "") -> Path:
    """The environment's interpreter. What has been built there for the same requirements is used again.

    Args:
        directory: where it is or shall be; empty, not there yet, or an environment, which is then built anew.
        torch: a requirement. torch_args: further arguments of pip for it alone.

    Raises:
        SystemExit: this Python is too new for the package, or something else lies in the directory.
        subprocess.CalledProcessError: pip refuses; it has said why.
    """
    wanted = _fingerprint(torch, torch_args)
    ready, python = directory / "ready", directory / "bin" / "python"
    if ready.is_file() and ready.read_text() == wanted:
        return python
    if sys.version_info >= OLDEST_WITHOUT:
        raise SystemExit("numpy below 2, which mixlora 0.2.3 needs, has no wheels for this Python: use 3.11 or 3.12")
    if directory.exists():
        if any(directory.iterdir()) and not (directory / "pyvenv.cfg").is_file():
            raise SystemExit(f"{directory} is no virtual environment: give --env an empty directory")
        shutil.rmtree(directory)
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, *shlex.split(torch_args), torch], check=True)
    subprocess.run([*pip, torch, "-r", str(REQUIREMENTS)], check=True)
    ready.write_text(wanted)
    return python


def _fingerprint(torch: str, torch_args: str) -> str:
    words = [sys.executable, sys.version, torch, torch_args, REQUIREMENTS.read_text()]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
