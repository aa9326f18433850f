"""What must stay light or pure stays so: importing it, with all that it imports, loads no torch and no transformers.

import-linter reads imports as they are written; this looks at what is loaded.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys

for name in sys.argv[1].split():
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", ()), name + "."):
        if ".migrations" not in module.name:  # Alembic runs those
            importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    ("packages", "absent"),
    [
        ("mlora_sched.spec mlora_sched.settings mlora_sched.sched", {"torch", "transformers", "numpy", "sqlalchemy"}),
        ("mlora_sched.client mlora_sched.cli.remote", {"torch", "transformers", "numpy", "sqlalchemy", "fastapi"}),
        ("mlora_sched.data mlora_sched.worker.prepare", {"torch", "transformers", "sqlalchemy", "fastapi"}),
        ("mlora_sched.server mlora_sched.store mlora_sched.daemon", {"torch", "transformers"}),
    ],
)
def test_light_packages_load_nothing_heavy(packages: str, absent: set[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, packages]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert "mlora_sched" in loaded
    assert loaded & absent == set()
