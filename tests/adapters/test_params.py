"""Where parameters lie in their flat buffers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.adapters.params import Params, ParamSpec

CPU = torch.device("cpu")


def filled(name: str, rows: int, width: int, value: float, *, joined: bool = False) -> ParamSpec:
    return ParamSpec(name, torch.full((rows, width), value), joined=joined)


@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=4), width=st.integers(1, 9))
def test_joined_parameters_are_one(rows: list[int], width: int) -> None:
    """Whatever their sizes, with other parameters before and behind; a change of the whole is one of its parts."""
    names = [f"a{at}" for at in range(len(rows))]
    specs = [filled(n, r, width, float(at), joined=at > 0) for at, (n, r) in enumerate(zip(names, rows, strict=True))]
    params = Params([filled("before", 3, 1, -1.0), *specs, filled("behind", 2, 2, -2.0)], CPU, torch.float32)
    whole = params.joined(names)
    assert torch.equal(whole.value, torch.cat([params[name].value for name in names]))
    whole.grad.fill_(1.0)
    assert all(bool((params[name].grad == 1).all()) for name in names)
    assert not params["before"].grad.any()
    assert not params["behind"].grad.any()


def test_a_compute_copy_is_joined_as_well() -> None:
    params = Params([filled("a", 2, 3, 1.0), filled("b", 2, 3, 2.0, joined=True)], CPU, torch.bfloat16)
    assert params.joined(["a", "b"]).compute.dtype is torch.bfloat16
    assert params.joined(["a", "b"]).compute[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_what_is_not_joined_cannot_be_seen_as_one() -> None:
    params = Params([filled("a", 1, 3, 1.0), filled("b", 1, 3, 2.0)], CPU, torch.float32)
    with pytest.raises(AssertionError, match="not joined"):
        params.joined(["a", "b"])


def test_another_order_is_another_layout() -> None:
    one, other = filled("a", 1, 3, 1.0), filled("b", 1, 3, 2.0)
    layouts = {Params(specs, CPU, torch.float32).layout for specs in ([one, other], [other, one], [one])}
    assert len(layouts) == 3
