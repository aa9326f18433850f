"""A batch of several chunks: its token loss is that of one chunk, its auxiliary losses their token-weighted mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine.bases import prepared
from oracle import ours

from adapters.float64 import float64_base, job_at
from adapters.methods import METHOD_CASES
from adapters.mixed import rows_with_tasks
from mlora_sched.data.token_set import Prepared, TokenSet

BALANCED = [case for case in METHOD_CASES if any(name.endswith("_loss_coef") for name in case.settings)]
LORAMOE = {"method": "loramoe", "r": 4, "alpha": 8, "num_experts": 4, "router_aux_loss_coef": 0.2}


def rows_of(data: TokenSet, wanted: Sequence[int]) -> Prepared:
    """Some rows of a set, as one of its own."""
    rows = [data.row(at) for at in wanted]
    found = prepared([len(row.input_ids) for row in rows], seed=0)
    train = dataclasses.replace(
        found.train,
        targets=data.targets[list(wanted)],
        _input_ids=np.concatenate([row.input_ids for row in rows]),
        _loss_mask=np.concatenate([row.loss_mask for row in rows]),
        tasks=None if data.tasks is None else data.tasks[list(wanted)],
    )
    return dataclasses.replace(found, train=train)


def check_means(adapter: dict[str, Any], data: Prepared) -> None:
    base = float64_base()
    pieces, whole = (job_at(base, adapter, data, chunk_tokens=tokens) for tokens in (24, 1024))
    chunks = list(pieces.waiting_chunks)
    assert len(chunks) > 1
    alone = []
    for chunk in chunks:
        state = job_at(base, adapter, rows_of(data.train, chunk.rows), chunk_tokens=1024)
        ours.run_phase(base, state)
        alone.append(state.finish_step().extra)
    for state in (pieces, whole):
        ours.run_phase(base, state)
    found, one = pieces.finish_step(), whole.finish_step()
    assert found.loss == pytest.approx(one.loss, rel=1e-10)
    assert alone[0]["aux_loss"] > 0
    for name in alone[0]:
        mean = np.average([figures[name] for figures in alone], weights=[chunk.tokens for chunk in chunks])
        assert found.extra[name] == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("case", BALANCED, ids=str)
def test_of_every_method(case: Any) -> None:
    check_means(case.adapter(), prepared((8, 13, 11, 5, 7, 20), seed=3))


def test_of_loramoe() -> None:
    check_means(LORAMOE, rows_with_tasks((8, 13, 11, 5, 7, 20), seed=3))
