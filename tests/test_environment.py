"""What training asks of the environment is there, and does what it is for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mlora_sched.environment import TRAINING, for_training, prepare_process


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert for_training()["MKL_CBWR"] == "COMPATIBLE"
    prepare_process()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
    assert os.environ["GOMP_SPINCOUNT"] == TRAINING["GOMP_SPINCOUNT"]


ROWS = """
import torch
torch.set_num_threads({threads})
torch.manual_seed(0)
x, w = torch.randn(1100, 1024), torch.randn(1024, 1024)
whole = x @ w, x @ w.T
print(all(torch.equal(x[:n] @ w, whole[0][:n]) and torch.equal(x[:n] @ w.T, whole[1][:n]) for n in (32, 96, 256, 416)))
"""


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the products are not MKL's")
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_a_product_do_not_depend_on_its_height(threads: int) -> None:
    """In a process of its own: MKL reads the variable once."""
    command = [sys.executable, "-c", ROWS.format(threads=threads)]
    done = subprocess.run(command, env=for_training(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
