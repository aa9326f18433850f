"""Logits of models with adapters as the `mixlora` package gives them. A program of its own, run by another Python.

    python read_with_mixlora.py questions.json logits.safetensors

It runs in the directory in which the bases lie under the names that the adapters give them. Nothing of mlora_sched is
imported: what is compared is what strangers read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from mixlora import MixLoraModelForCausalLM
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

# eager: other implementations of 4.44.2 leave out soft-capping
LOADING = {"torch_dtype": torch.float32, "attn_implementation": "eager"}


def main(questions: Path, answers: Path) -> None:
    """Answer every question: the logits of its rows, each alone, in float32."""
    torch.set_num_threads(1)  # the models are tiny
    found = {}
    for name, question in json.loads(questions.read_text()).items():
        model = model_of(question)
        for i, row in enumerate(question["rows"]):
            with torch.no_grad():
                found[f"{name}/{i}"] = model(torch.tensor([row]), use_cache=False).logits[0].contiguous()
    save_file(found, answers)


def model_of(question: dict[str, Any]) -> Any:
    """The base, or the adapter on the base that it names, in evaluation mode."""
    if question["adapter"] is None:
        return AutoModelForCausalLM.from_pretrained(question["base"], **LOADING).eval()
    model, _ = MixLoraModelForCausalLM.from_pretrained(question["adapter"], **LOADING)
    model.eval()
    for module in model.modules():
        # the package keeps its experts out of the module tree, so that their dropout does not hear of `eval`
        for experts in getattr(module, "mixlora_moes", {}).values():
            for expert in experts.experts_.values():
                expert.dropout_.p = 0.0
    return model


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
