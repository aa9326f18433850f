"""PEFT is the oracle: the same start (B ≠ 0), rows, order and schedule give the same losses and the same adapter.

Ours runs packed, in chunks, with its own backward; PEFT runs a padded batch through transformers' eager model, with
autograd and `torch.optim.AdamW`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters.methods import PEFT_CASES, MethodCase
from engine.bases import base_of, model_of, prepared
from model.architectures import config_of
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor

from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.adapter_files import CONFIG, MODEL, read_adapter, write_adapter
from mlora_sched.data.token_set import Prepared
from mlora_sched.engine.train_state import TrainState
from mlora_sched.model.base import FrozenBase
from mlora_sched.optim.schedules import learning_rate
from oracle import ours

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it

STEPS = 50
TRAINING: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": 4,
    "learning_rate": 2e-3,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 0.5,
    "chunk_tokens": 48,
    "seed": 7,
}
LENGTHS = (13, 24, 30, 9, 21, 17)


@dataclass(frozen=True)
class Setup:
    """A tiny base for the comparison.

    Attributes:
        targets: module names to adapt, in both.
        scale: of its random matrices.
    """

    model_type: str
    targets: tuple[str, ...]
    scale: float = 2.0

    def __str__(self) -> str:
        return self.model_type

    @property
    def config(self) -> Any:
        """Without any dropout, so that PEFT's train mode is free of randomness."""
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if self.model_type == "gpt2" else {}
        return config_of(self.model_type, **off)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
SETUPS = (
    Setup("llama", ATTENTION + FFN),
    Setup("qwen3", ATTENTION + FFN),
    Setup("gemma2", ATTENTION + FFN, scale=8.0),
    Setup("phi3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    Setup("gpt2", ("c_attn", "c_proj", "c_fc")),
    Setup("mixtral", ATTENTION),
)


def peft_model(setup: Setup, case: MethodCase) -> Any:
    """A PEFT model whose B is not zero."""
    spec = case.adapter()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=spec["r"],
        lora_alpha=spec["alpha"],
        lora_dropout=0.0,
        target_modules=list(setup.targets),
        fan_in_fan_out=setup.model_type == "gpt2",
        **(case.peft or {}),
    )
    model = peft.get_peft_model(model_of(setup.config, scale=setup.scale), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model.train()


def peft_losses(model: Any, case: MethodCase, data: Prepared, state: TrainState) -> list[float]:
    """Losses of the job trained by PEFT, transformers and torch."""
    training = state.spec.training
    optimizer = _optimizer(model, case, training.weight_decay)
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = []
    for step in range(STEPS):
        loss = _batch_loss(model, [data.train.row(i) for i in state.cursor.batch(step)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate(training, step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _optimizer(model: Any, case: MethodCase, weight_decay: float) -> torch.optim.Optimizer:
    """At rate 1: the schedule multiplies."""
    if case.method != "loraplus":
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=1.0, weight_decay=weight_decay)
    return create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=1.0,
        loraplus_lr_ratio=case.settings["lr_ratio"],
        loraplus_weight_decay=weight_decay,
    )


def _batch_loss(model: Any, rows: Sequence[Any]) -> Tensor:
    """Mean cross-entropy over the target tokens of a right-padded batch."""
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        ids[i, :n] = torch.from_numpy(row.input_ids.astype(np.int64))
        mask[i, :n] = 1
        labels[i, :n] = torch.where(torch.from_numpy(row.loss_mask), ids[i, :n], -100)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def our_job(setup: Setup, case: MethodCase, data: Prepared, start: Path) -> tuple[FrozenBase, TrainState]:
    """The same job here, started from the files that PEFT has written."""
    base = base_of(setup.config, scale=setup.scale)
    state = ours.job(base, data, case.adapter(target_modules=list(setup.targets)), **TRAINING)
    state.adapter.read(read_adapter(start / CONFIG, start / MODEL))
    return base, state


def peft_reads(setup: Setup, files: AdapterFiles, folder: Path) -> Any:
    """Our adapter, loaded by PEFT on a fresh base."""
    folder.mkdir()
    write_adapter(folder, files, {})
    return peft.PeftModel.from_pretrained(model_of(setup.config, scale=setup.scale), str(folder)).eval()


@pytest.mark.parametrize("case", PEFT_CASES, ids=str)
@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_same_losses_and_same_adapter_as_peft(
    setup: Setup, case: MethodCase, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = prepared(LENGTHS, seed=5)
    model = peft_model(setup, case)
    model.save_pretrained(str(tmp_path / "start"))
    base, state = our_job(setup, case, data, tmp_path / "start")

    steps = ours.train(base, state)
    mine = [figures.loss for figures in steps]
    assert max(figures.grad_norm for figures in steps) > TRAINING["max_grad_norm"], "clipping was not compared"
    theirs = peft_losses(model, case, data, state)
    assert np.mean(mine[-3:]) < 0.9 * np.mean(mine[:3]), "nothing was learnt, so nothing was compared"
    np.testing.assert_allclose(mine, theirs, rtol=1e-4)

    rows = [data.train.row(i).input_ids for i in range(len(data.train))]
    reader = peft_reads(setup, state.adapter.files(), tmp_path / "ours")
    largest, difference, flips = _compare_logits(base, state, reader, rows)
    request.node.user_properties.append(("router_flips", flips))
    assert difference <= 1e-5 * largest, f"{flips} tokens were sent to other experts"


def _compare_logits(
    base: FrozenBase, state: TrainState, reader: Any, rows: Sequence[np.ndarray]
) -> tuple[float, float, int]:
    """Largest logit, largest difference, and the tokens that a router sent to other experts."""
    largest = difference = 0.0
    with _RouterChoices(base.model) as packed, _RouterChoices(reader) as alone, torch.no_grad():
        mine = ours.logits(base, state.adapter, rows)
        for row, logits in zip(rows, mine, strict=True):
            theirs = reader(input_ids=torch.from_numpy(row.astype(np.int64))[None], use_cache=False).logits[0]
            largest = max(largest, float(theirs.abs().max()))
            difference = max(difference, float((logits - theirs).abs().max()))
    return largest, difference, packed.flips(alone)


class _RouterChoices:
    """Notes which experts the routers of a mixture choose."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: dict[str, list[Tensor]] = {}
        self._routers = [(n, m) for n, m in model.named_modules() if type(m).__name__.endswith("Router")]
        assert bool(self._routers) == (model.config.model_type == "mixtral")

    def __enter__(self) -> _RouterChoices:
        self._hooks = [module.register_forward_hook(self._note(name)) for name, module in self._routers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str) -> Callable[..., None]:
        def note(_module: torch.nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> None:
            self.seen.setdefault(name, []).append(output[-1].sort(dim=-1).values)

        return note

    def flips(self, other: _RouterChoices) -> int:
        """Tokens whose experts differ, over all layers."""
        pairs = zip(self.seen.values(), other.seen.values(), strict=True)
        return sum(int((torch.cat(mine) != torch.cat(theirs)).any(dim=1).sum()) for mine, theirs in pairs)


def test_both_soft_caps_of_the_gemma2_base_matter() -> None:
    """Otherwise the comparison above would not see one dropped."""
    (setup,) = (setup for setup in SETUPS if setup.model_type == "gemma2")
    ids = torch.from_numpy(prepared(LENGTHS, seed=5).train.row(2).input_ids.astype(np.int64))[None]

    def logits(**caps: None) -> Tensor:
        with torch.no_grad():
            return model_of(config_of("gemma2", **caps), scale=setup.scale)(input_ids=ids).logits

    whole = logits()
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        change = (logits(**{name: None}) - whole).abs().max() / whole.abs().max()
        assert change > 1e-2, name
