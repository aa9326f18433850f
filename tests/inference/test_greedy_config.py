"""A config of a few bytes can ask for terabytes: `load_adapter` counts before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapters.methods import METHOD_CASES, VARIANT_CASES, MethodCase
from engine.bases import base_of, llama_config, model_of, prepared
from oracle import ours

import mlora_sched
from mlora_sched import inference
from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.adapter_files import write_adapter
from mlora_sched.errors import UserError


@pytest.mark.parametrize("case", [*METHOD_CASES, *VARIANT_CASES], ids=str)
def test_a_config_that_asks_for_more_than_there_is_is_refused_before_it_is_made(
    case: MethodCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of an adapter is not counted as more than its tensors have; that of rank 1024 is."""
    base = base_of(llama_config())
    files = ours.job(base, prepared((5,), seed=1), case.adapter()).adapter.files()
    for name in ("whole", "greedy"):
        (tmp_path / name).mkdir()
    write_adapter(tmp_path / "whole", files, {})
    mlora_sched.load_adapter(model_of(llama_config()), tmp_path / "whole")
    greedy = {"r": 1024, "expert_lora": {"r": 1024}} if "expert_lora" in files.config else {"r": 1024}
    write_adapter(tmp_path / "greedy", AdapterFiles(files.config | greedy, files.tensors), {})
    monkeypatch.setattr(inference, "build_adapter", lambda *_: pytest.fail("it was made"))
    with pytest.raises(UserError, match=r"asks for \d+ numbers or more"):
        mlora_sched.load_adapter(model_of(llama_config()), tmp_path / "greedy")
