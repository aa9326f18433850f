"""Checks of the machine that calls `doctor`: versions, user, disk, GPU driver, torch, which is not loaded for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlora_sched.memory.sizes import format_size
from mlora_sched.spec.doctor import Check, Outcome
from mlora_sched.version import __version__

_LITTLE, _NOTHING = 1 << 30, 64 << 20
"""Bytes of free disk below which uploads and archives may soon not fit, or certainly do not."""

_NVIDIA = "0x10de"
_WHOLE = 4_294_967_295
_CUDA_LINE = re.compile(r"^cuda\b[^=]*=\s*['\"](\d+)\.(\d+)", re.MULTILINE)
_TORCH_SECONDS = 300


def check_versions() -> Check:
    """This program and its Python."""
    found = f"mlora_sched {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    return Check(name="program", outcome=Outcome.OK, found=found)


def check_user(uid_map: str, uid: int) -> Check:
    """Who calls, and who that is outside of a container whose user ids are mapped.

    Args:
        uid_map: content of /proc/self/uid_map, lines of three numbers: first id inside, first id outside, how many.
        uid: the caller's, inside.
    """
    name = _user_name(uid)
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines() if line.strip()]
    if not ranges or ranges == [(0, 0, _WHOLE)]:
        return Check(name="user", outcome=Outcome.OK, found=name)
    outside = next((first + uid - inside for inside, first, count in ranges if inside <= uid < inside + count), None)
    if outside is None:
        return Check(
            name="user",
            outcome=Outcome.FAIL,
            found=f"{name} has no user id outside of this container: a daemon there cannot tell you from others",
            remedy="have the container started with your user id mapped (podman: --userns=keep-id)",
        )
    if outside == uid:
        return Check(name="user", outcome=Outcome.OK, found=f"{name}; user ids are mapped here, yours to itself")
    return Check(
        name="user",
        outcome=Outcome.WARN,
        found=f"{name} here is user id {outside} outside of this container; a daemon there takes you for that user",
        remedy="if your jobs then belong to a stranger, have your own user id mapped (podman: --userns=keep-id)",
    )


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"user id {uid}, which has no name here"


def uid_map() -> str:
    """Of this process; empty where the kernel has none."""
    path = Path("/proc/self/uid_map")
    return path.read_text() if path.exists() else ""


def check_scratch(folder: Path, free: int | None = None) -> Check:
    """Room for temporary files.

    Args:
        free: bytes; asked for where not given.
    """
    name = "scratch disk"
    try:
        free = shutil.disk_usage(folder).free if free is None else free
    except OSError as error:
        found = f"{folder}: {error.strerror}"
        return Check(name=name, outcome=Outcome.FAIL, found=found, remedy="set TMPDIR to a directory that is there")
    found = f"{format_size(free)} free in {folder}"
    if free < _NOTHING:
        return Check(name=name, outcome=Outcome.FAIL, found=found, remedy="make room there, or set TMPDIR")
    if free < _LITTLE:
        return Check(name=name, outcome=Outcome.WARN, found=found, remedy="make room there, or set TMPDIR")
    return Check(name=name, outcome=Outcome.OK, found=found)


def scratch_folder() -> Path:
    """Where this program's temporary files go."""
    return Path(tempfile.gettempdir())


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver on this machine.

    Attributes:
        present: there is a card, or a driver for one.
        version: of the driver, empty where it is not loaded.
        cuda: newest CUDA it can run, (0, 0) where it does not say.
        devices: names of the cards it shows.
        trouble: why its library does not answer, empty when it does.
    """

    present: bool = False
    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    devices: tuple[str, ...] = ()
    trouble: str = ""


def find_driver(root: Path = Path("/")) -> Driver:
    """Ask NVIDIA's library, and where that does not answer, the kernel.

    Args:
        root: where /proc and /sys are.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        module = root / "proc/driver/nvidia/version"
        version = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", module.read_text()) if module.exists() else None
        cards = (root / "sys/bus/pci/devices").glob("*/vendor")
        present = module.exists() or any(card.read_text().strip() == _NVIDIA for card in cards)
        return Driver(present=present, version=version[1] if version else "", trouble=str(error))
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
        return Driver(
            present=True,
            version=str(pynvml.nvmlSystemGetDriverVersion()),
            cuda=(cuda // 1000, cuda % 1000 // 10),
            devices=tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles),
        )
    except pynvml.NVMLError as error:
        return Driver(present=True, trouble=str(error))
    finally:
        pynvml.nvmlShutdown()


def check_driver(driver: Driver) -> Check:
    """Whether GPUs of this machine can be used."""
    name = "GPU driver"
    if not driver.present:
        return Check(name=name, outcome=Outcome.SKIP, found="no NVIDIA GPU on this machine")
    if driver.trouble and driver.version:
        found = f"driver {driver.version} is loaded, but its library does not answer: {driver.trouble}"
        remedy = "start a container with its GPUs (docker: --gpus all); else install the driver's libraries"
        return Check(name=name, outcome=Outcome.WARN, found=found, remedy=remedy)
    if driver.trouble:
        found = f"there is a GPU, but no driver answers: {driver.trouble}"
        remedy = "install or reload NVIDIA's driver (`nvidia-smi` must work); until then serve with --device cpu"
        return Check(name=name, outcome=Outcome.WARN, found=found, remedy=remedy)
    cuda = ".".join(map(str, driver.cuda))
    found = f"{driver.version}, CUDA up to {cuda}; {', '.join(driver.devices) or 'shows no GPU'}"
    return Check(name=name, outcome=Outcome.OK if driver.devices else Outcome.WARN, found=found)


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """torch as it is installed: its version, and the CUDA it was built for (None for the CPU alone)."""

    version: str
    cuda: tuple[int, int] | None


def find_torch() -> TorchBuild | None:
    """Read off the installed files; None where torch is not installed."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    built = _CUDA_LINE.search(file.read_text()) if file is not None and file.exists() else None
    return TorchBuild(version, (int(built[1]), int(built[2])) if built else None)


def check_torch(build: TorchBuild | None, driver: Driver) -> Check:
    """Whether the installed torch can use the GPUs there are."""
    name = "torch"
    if build is None:
        found = "not installed here; verbs that talk to a daemon need none"
        return Check(name=name, outcome=Outcome.SKIP, found=found)
    if build.cuda is None:
        if driver.devices:
            found = f"{build.version}, built for CPUs, beside {len(driver.devices)} GPU"
            remedy = "to train on the GPU here, install a torch for CUDA (pytorch.org, Get started)"
            return Check(name=name, outcome=Outcome.WARN, found=found, remedy=remedy)
        return Check(name=name, outcome=Outcome.OK, found=f"{build.version}, built for CPUs")
    found = f"{build.version}, built for CUDA {build.cuda[0]}.{build.cuda[1]}"
    if driver.cuda != (0, 0) and build.cuda[0] > driver.cuda[0]:
        found += f", which the driver ({driver.version}, CUDA up to {driver.cuda[0]}.{driver.cuda[1]}) cannot run"
        remedy = f"update NVIDIA's driver, or install a torch for CUDA {driver.cuda[0]}"
        return Check(name=name, outcome=Outcome.FAIL, found=found, remedy=remedy)
    return Check(name=name, outcome=Outcome.OK, found=found)


def check_torch_loads() -> Check:
    """Load torch, in a process of its own, and ask it for its GPUs."""
    program = (
        "import torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
        "print(f'{torch.__version__}: {n} GPU usable, {torch.get_num_threads()} CPU threads')"
    )
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        found = f"not loaded after {_TORCH_SECONDS} s"
        return Check(name="torch loads", outcome=Outcome.FAIL, found=found, remedy="look what holds it (`py-spy dump`)")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        remedy = "install torch anew in this environment"
        return Check(name="torch loads", outcome=Outcome.FAIL, found=last, remedy=remedy)
    return Check(name="torch loads", outcome=Outcome.OK, found=done.stdout.strip())
