"""The checks that `doctor` makes on its own side, in broken surroundings that are made up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched import __version__
from mlora_sched.cli.checks import machine
from mlora_sched.cli.checks.daemon import _QUOTA_REMEDIES, check_daemon
from mlora_sched.cli.checks.door import check_door
from mlora_sched.cli.checks.listing import summary
from mlora_sched.cli.checks.machine import Driver, TorchBuild
from mlora_sched.client import Client
from mlora_sched.errors import MloraError, NotFound, Unreachable
from mlora_sched.spec.doctor import Check, DaemonCheckup, Diagnosis, Outcome
from mlora_sched.spec.quota import QuotaKind, QuotaLine, QuotaView

GIB = 1 << 30


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket's path, and open to other users."""
    with tempfile.TemporaryDirectory(prefix="ms-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


# ---------------------------------------------------------------- the door


def test_no_socket_and_no_directory(folder: Path) -> None:
    missing = check_door(folder / "s", "--socket")
    assert (missing.outcome, missing.found) == (
        Outcome.FAIL,
        f"{folder}/s (from --socket): No such file or directory",
    )
    assert "mlora-sched serve" in missing.remedy
    assert f"there is no directory {folder}/gone" in check_door(folder / "gone" / "far" / "s", "X").found
    assert "longer than the 107 bytes" in check_door(folder / ("x" * 120), "X").found


def test_a_file_that_is_no_socket(folder: Path) -> None:
    (folder / "s").write_text("")
    assert check_door(folder / "s", "X").found.endswith("is no socket")


def test_the_socket_of_a_daemon_that_has_ended(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
    check = check_door(folder / "s", "X")
    assert (check.outcome, check.found.endswith("its daemon has ended")) == (Outcome.FAIL, True)


def test_a_socket_where_somebody_listens(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        assert check_door(folder / "s", "MLORA_SCHED_SOCKET") == Check(
            name="socket", outcome=Outcome.OK, found=f"{folder}/s (from MLORA_SCHED_SOCKET): somebody listens"
        )


AS_NOBODY = """
import json, os, sys
from pathlib import Path
from mlora_sched.cli.checks.door import check_door
from mlora_sched.client import Client
from mlora_sched.errors import Unreachable
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try:
    with Client(Path(sys.argv[1])) as client:
        client.daemon()
    said = ""
except Unreachable as error:
    said = error.message
check = check_door(Path(sys.argv[1]), "X")
print(json.dumps([check.outcome, check.found, check.remedy, said]))
"""


def as_nobody(path: Path) -> tuple[str, str, str, str]:
    """What `doctor`, and any verb, tells a user of no rights about a socket."""
    if os.geteuid() != 0:
        pytest.skip("takes root, to become another user")
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(path)], check=True, capture_output=True, text=True)
    outcome, found, remedy, said = json.loads(done.stdout)
    return outcome, found, remedy, said


@pytest.mark.parametrize(
    ("mode", "helps"),
    [
        (0o600, "only root and root may connect: ask for `serve --socket-group` with a group of yours"),
        (0o660, "ask an administrator to put you into the group root, then log in anew"),
    ],
)
def test_a_socket_that_is_closed_to_this_user(folder: Path, mode: int, helps: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        (folder / "s").chmod(mode)
        listener.listen()
        outcome, found, remedy, said = as_nobody(folder / "s")
    assert (outcome, remedy) == ("fail", helps)
    assert found == f"the daemon's socket {folder}/s is closed to you (owner root, group root, mode {mode:04o})"
    assert said == f"{found}; {helps}"


def test_a_directory_that_is_closed_to_this_user(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir(mode=0o700)
    outcome, found, _, said = as_nobody(inner / "s")
    assert (outcome, f"{inner} (owner root, group root, mode 0700) cannot be entered by you" in found) == ("fail", True)
    assert said.startswith(f"a directory on the way to {inner}/s is closed to you")


# ---------------------------------------------------------------- the machine


@pytest.mark.parametrize("uid_map", ["", "         0          0 4294967295\n"])
def test_users_outside_of_containers_are_themselves(uid_map: str) -> None:
    assert machine.check_user(uid_map, 0) == Check(name="user", outcome=Outcome.OK, found="root (0)")


def test_mapped_and_unmapped_users() -> None:
    rootless = "0 1000 1\n1 100000 65536\n"
    root = machine.check_user(rootless, 0)
    assert (root.outcome, "user id 1000 outside of this container" in root.found) == (Outcome.WARN, True)
    assert "is user id 100004 outside" in machine.check_user(rootless, 5).found
    nobody = machine.check_user("0 1000 1\n", 65534)
    assert (nobody.outcome, "has no user id outside" in nobody.found) == (Outcome.FAIL, True)
    assert machine.check_user("1000 1000 1\n", 1000).outcome is Outcome.OK


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(0, 120))
def test_the_user_outside_is_the_one_that_the_map_says(inside: int, outside: int, count: int, uid: int) -> None:
    check = machine.check_user(f"{inside} {outside} {count}\n", uid)
    mapped = dict(zip(range(inside, inside + count), range(outside, outside + count), strict=True))
    expected = {None: Outcome.FAIL, uid: Outcome.OK}.get(mapped.get(uid), Outcome.WARN)
    assert check.outcome is expected
    if expected is Outcome.WARN:
        assert f"is user id {mapped[uid]} outside" in check.found


@pytest.mark.parametrize(
    ("free", "outcome"), [(0, Outcome.FAIL), (GIB // 2, Outcome.WARN), (GIB, Outcome.OK), (None, None)]
)
def test_room_for_temporary_files(tmp_path: Path, free: int | None, outcome: Outcome | None) -> None:
    check = machine.check_scratch(tmp_path, free)
    assert check.outcome is outcome or free is None
    assert machine.check_scratch(tmp_path / "gone").outcome is Outcome.FAIL


NEW, OLD = (Driver(True, "580.1", (13, 0), ("H100",)), Driver(True, "535.2", (12, 2), ("A100", "A100")))


@pytest.mark.parametrize(
    ("driver", "outcome", "says"),
    [
        (Driver(), Outcome.SKIP, "no NVIDIA GPU"),
        (NEW, Outcome.OK, "580.1, CUDA up to 13.0; H100"),
        (Driver(True, "535.2", trouble="Driver/library version mismatch"), Outcome.WARN, "its library does not answer"),
        (Driver(True, trouble="Driver Not Loaded"), Outcome.WARN, "no driver answers"),
        (Driver(True, "535.2", (12, 2)), Outcome.WARN, "shows no GPU"),
    ],
)
def test_drivers(driver: Driver, outcome: Outcome, says: str) -> None:
    check = machine.check_driver(driver)
    assert (check.outcome, says in check.found) == (outcome, True)


@pytest.mark.parametrize(
    ("build", "driver", "outcome"),
    [
        (None, NEW, Outcome.SKIP),
        (TorchBuild("2.13.0+cpu", None), Driver(), Outcome.OK),
        (TorchBuild("2.13.0+cpu", None), NEW, Outcome.WARN),
        (TorchBuild("2.13.0+cu128", (12, 8)), OLD, Outcome.OK),
        (TorchBuild("2.13.0+cu130", (13, 0)), OLD, Outcome.FAIL),
        (TorchBuild("2.13.0+cu130", (13, 0)), Driver(), Outcome.OK),
    ],
)
def test_torch_beside_the_driver(build: TorchBuild | None, driver: Driver, outcome: Outcome) -> None:
    assert machine.check_torch(build, driver).outcome is outcome


def test_the_driver_is_looked_for_in_the_kernel_where_its_library_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", silent)
    card = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x8086\n")
    assert machine.find_driver(tmp_path).present is False
    (card / "vendor").write_text("0x10de\n")
    found = machine.find_driver(tmp_path)
    assert (found.present, found.version) == (True, "")
    module = tmp_path / "proc/driver/nvidia/version"
    module.parent.mkdir(parents=True)
    module.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    assert machine.find_driver(tmp_path).version == "550.54.15"


def test_the_installed_torch_is_what_torch_says_of_itself() -> None:
    import torch

    cuda = None if torch.version.cuda is None else tuple(map(int, torch.version.cuda.split(".")[:2]))
    assert machine.find_torch() == TorchBuild(torch.__version__, cuda)


# ---------------------------------------------------------------- the daemon's answer


class Played(Client):
    """A daemon that answers with this, be it an error."""

    def __init__(self, answer: DaemonCheckup | MloraError) -> None:
        super().__init__(Path("/nowhere/s"))
        self._given = answer
        self.lines: tuple[QuotaLine, ...] = ()

    def checkup(self) -> DaemonCheckup:
        if isinstance(self._given, MloraError):
            raise self._given
        return self._given

    def quota(self) -> QuotaView:
        return QuotaView(user="ann", lines=self.lines)


def checkup(**more: object) -> DaemonCheckup:
    values = {"version": __version__, "python": "3.11", "time": 100.0, "user": "ann", "admin": False, "via": "socket"}
    return DaemonCheckup.model_validate({"checks": (), **values, **more})


def by_name(answer: DaemonCheckup | MloraError, now: float = 100.0) -> dict[str, Check]:
    with Played(answer) as client:
        return {check.name: check for check in check_daemon(client, "ann", clock=lambda: now)}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unreachable("stopped"), "stopped"),
        (NotFound("GET /daemon/doctor: Not Found"), "an older version"),
        (MloraError("damaged"), "damaged"),
    ],
)
def test_a_daemon_that_does_not_answer_is_a_failed_check(error: MloraError, says: str) -> None:
    [check] = by_name(error).values()
    assert (check.outcome, says in check.found) == (Outcome.FAIL, True)


def test_same_version_user_and_clock() -> None:
    assert {check.outcome for check in by_name(checkup()).values()} == {Outcome.OK}


def test_another_version_user_and_clock() -> None:
    found = by_name(checkup(version="0.0.1", user="bob", admin=True))
    assert "0.0.1" in found["daemon"].found
    assert found["daemon"].outcome is found["identity"].outcome is Outcome.WARN
    assert found["identity"].found == "to the daemon you are bob, an administrator; here you are ann"


@given(st.floats(0, 1e6))
def test_clocks_that_differ_are_told_with_their_difference(now: float) -> None:
    clock = by_name(checkup(), now)["clock"]
    assert (clock.outcome is Outcome.WARN) == (abs(now - 100.0) > 2.0)
    if clock.outcome is Outcome.WARN:
        assert f"{abs(now - 100.0):.0f} s {'ahead of' if now < 100 else 'behind'} this one" in clock.found


def test_a_slow_answer_is_no_difference_of_clocks() -> None:
    times = iter([90.0, 130.0])
    with Played(checkup()) as client:
        found = check_daemon(client, "ann", clock=lambda: next(times))
    assert all(check.outcome is Outcome.OK for check in found)


def test_over_tcp_the_token_says_who_one_is() -> None:
    identity = by_name(checkup(user="bob", via="tcp"))["identity"]
    assert (identity.outcome, identity.found) == (Outcome.OK, "to the daemon you are bob, as your token says")


@pytest.mark.parametrize(
    ("limit", "used", "outcome", "says"),
    [
        (None, 5, Outcome.OK, "none is set"),
        (10 * GIB, 8 * GIB, Outcome.OK, "spool 8.0 GiB of 10.0 GiB"),
        (10 * GIB, 9 * GIB, Outcome.WARN, "(nearly) used up: spool 9.0 GiB of 10.0 GiB"),
        (0, 0, Outcome.WARN, "used up"),
    ],
)
def test_quotas(limit: int | None, used: int, outcome: Outcome, says: str) -> None:
    with Played(checkup()) as client:
        client.lines = (QuotaLine(kind=QuotaKind.SPOOL, limit=limit, used=used, own=False),)
        quota = next(check for check in check_daemon(client, "ann", lambda: 100.0) if check.name == "quota")
    assert (quota.outcome, says in quota.found) == (outcome, True)


def test_a_diagnosis_in_a_word() -> None:
    def diagnosis(*outcomes: Outcome) -> Diagnosis:
        return Diagnosis(checks=tuple(Check(name="x", outcome=outcome, found="") for outcome in outcomes))

    assert summary(diagnosis(Outcome.OK, Outcome.SKIP)) == "all is well"
    assert summary(diagnosis(Outcome.WARN, Outcome.FAIL, Outcome.FAIL)) == "2 failed, 1 to look at"
    assert diagnosis(Outcome.WARN).healthy
    assert not diagnosis(Outcome.FAIL, Outcome.OK).healthy


def test_only_quotas_that_are_short_are_told_each_with_its_remedy() -> None:
    def line(kind: QuotaKind, used: int) -> QuotaLine:
        return QuotaLine(kind=kind, limit=10, used=used, own=False)

    with Played(checkup()) as client:
        client.lines = (line(QuotaKind.LIVE_JOBS, 1), line(QuotaKind.TOKENS_PER_DAY, 10), line(QuotaKind.SPOOL, 9))
        quota = next(check for check in check_daemon(client, "ann", lambda: 100.0) if check.name == "quota")
    assert quota.found == "(nearly) used up: tokens per day 10 of 10, spool 9 B of 10 B"
    assert "come back at 00:00 UTC" in quota.remedy
    assert "`mlora-sched rm`" in quota.remedy
    assert "cancel" not in quota.remedy
    assert set(_QUOTA_REMEDIES) == set(QuotaKind)
