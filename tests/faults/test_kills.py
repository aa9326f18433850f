"""Nothing is lost, whatever is killed and whenever; see `kills`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .kills import Kind, Siege, Tally
from .work import Work

# httpx leaves a socket to the garbage collector when nobody answers at the other end
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

SHORT = [Kind.CHECKPOINT, Kind.SUBMIT, Kind.UPLOAD, Kind.PREPARER, Kind.WORKER, Kind.BOTH]

SEEDS, KILLS = 5, 20


@pytest.mark.timeout(300)
def test_six_kills(work: Work, folder: Path) -> None:
    tally = Siege(work, folder, seed=1).run(SHORT, jobs=6)
    assert tally.kills.total() + tally.missed.total() == len(SHORT)
    assert tally.starts == 4, "the daemon is started again after each death, and for no other reason"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_checkpoint_ahead_of_the_record(work: Work, folder: Path) -> None:
    """The daemon dies before it has written down the steps up to a checkpoint that its worker has saved."""
    tally = Siege(work, folder, seed=2).run([Kind.AHEAD], jobs=6)
    assert tally.kills[Kind.AHEAD] == 1, "the moment was to be met"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills(work: Work, folder: Path) -> None:
    """Every kind, in an order of each seed's own."""
    whole = Tally()
    for seed in range(SEEDS):
        (place := folder / str(seed)).mkdir()
        siege = Siege(work, place, seed)
        draw = random.Random(seed)
        kinds = [kind for _ in range(3) for kind in draw.sample(list(Kind), len(Kind))]
        whole.add(siege.run(kinds[:KILLS], jobs=10))
        print(f"\n{whole.table()}", flush=True)
    assert whole.kills.total() + whole.missed.total() == SEEDS * KILLS
    assert whole.kills.total() >= 0.9 * SEEDS * KILLS, "moments were missed too often"
