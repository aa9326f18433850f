"""What we export with `all-linear`, PEFT loads without a warning on every architecture, and gives the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from engine.bases import base_of, model_of, prepared
from model.architectures import SETTINGS, config_of

from mlora_sched.artifacts.adapter_files import write_adapter
from oracle import ours

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("model_type", SETTINGS)
def test_same_logits(model_type: str, method: str, tmp_path: Path) -> None:
    data, base = prepared((21, 40), seed=2), base_of(config_of(model_type), scale=2.0)
    state = ours.job(base, data, {"method": method, "r": 3, "alpha": 6})
    generator = torch.Generator().manual_seed(4)
    for name in state.adapter.params:
        value = state.adapter.params[name].value
        value += 0.05 * torch.randn(value.shape, generator=generator)
    state.adapter.begin_step()
    write_adapter(tmp_path, state.adapter.files(), {})

    # warnings are errors: PEFT warns of keys that it misses or does not expect
    plain = model_of(config_of(model_type), scale=2.0)
    model = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    rows = [data.train.row(i).input_ids for i in range(len(data.train))]
    with torch.no_grad():
        theirs = [model(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits[0] for row in rows]
    largest = max(float(logits.abs().max()) for logits in theirs)
    for mine, logits in zip(ours.logits(base, state.adapter, rows), theirs, strict=True):
        torch.testing.assert_close(mine, logits, rtol=0, atol=1e-5 * largest)
