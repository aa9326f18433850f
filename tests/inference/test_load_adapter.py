"""`mlora_sched.load_adapter`: an adapter on a plain transformers model runs as training's evaluation ran it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters.methods import METHOD_CASES, PEFT_CASES, MethodCase, case_of
from engine.bases import VOCAB, base_of, llama_config, model_of, prepared
from model.architectures import config_of
from oracle import ours
from safetensors.torch import load_file, save_file
from torch import Tensor

import mlora_sched
from mlora_sched.adapters.base import AdapterFiles
from mlora_sched.artifacts.adapter_files import CONFIG, MODEL, write_adapter
from mlora_sched.errors import BaseError, UserError
from mlora_sched.model.rowwise import as_transformers

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it

ROWS = [prepared((21, 40, 9), seed=2).train.row(at).input_ids for at in range(3)]
SCALE = 3.0


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, list[Tensor]]]:
    """By method and model type: an adapter with weights far from its start, and the engine's logits of each row."""
    made: dict[tuple[str, str], tuple[Path, list[Tensor]]] = {}

    def make(case: MethodCase, model_type: str = "llama") -> tuple[Path, list[Tensor]]:
        if (case.method, model_type) not in made:
            base = base_of(config(model_type), scale=SCALE)
            adapter = ours.job(base, prepared((5,), seed=1), case.adapter(dropout=0.3)).adapter
            generator = torch.Generator().manual_seed(4)
            for name in adapter.params:
                value = adapter.params[name].value
                value += 0.1 * torch.randn(value.shape, generator=generator)
            adapter.begin_step()
            folder = tmp_path_factory.mktemp(case.method)
            write_adapter(folder, adapter.files(), {})
            with as_transformers(base.model):  # in its norms and rotary positions the engine rounds otherwise
                made[case.method, model_type] = folder, [ours.logits(base, adapter, [row])[0] for row in ROWS]
        return made[case.method, model_type]

    return make


Exported = Callable[..., tuple[Path, list[Tensor]]]


def config(model_type: str) -> Any:
    return llama_config() if model_type == "llama" else config_of(model_type)


def plain(model_type: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    return model_of(config(model_type), dtype, scale=SCALE)


def ids_of(row: np.ndarray) -> Tensor:
    return torch.from_numpy(row.astype(np.int64))[None]


def left_padded() -> tuple[Tensor, Tensor]:
    """The rows as one batch, and its attention mask."""
    longest = max(len(row) for row in ROWS)
    ids = torch.zeros(len(ROWS), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(ROWS):
        ids[at, longest - len(row) :] = ids_of(row)[0]
        mask[at, longest - len(row) :] = 1
    return ids, mask


def loaded(case: MethodCase, exported: Exported, model_type: str = "llama") -> Any:
    return mlora_sched.load_adapter(plain(model_type), exported(case, model_type)[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_logits_are_those_of_trainings_evaluation(case: MethodCase, attention: str, exported: Exported) -> None:
    """Bit for bit alone, and within rounding in a batch with padding on the left, whose rows the adapter sees, too."""
    expected, model = exported(case)[1], loaded(case, exported)
    model.set_attn_implementation(attention)
    ids, mask = left_padded()
    with torch.no_grad():
        alone = [model(ids_of(row)).logits[0] for row in ROWS]
        together = model(input_ids=ids, attention_mask=mask).logits
        bare = [plain()(ids_of(row)).logits[0] for row in ROWS]
    largest = max(float(logits.abs().max()) for logits in expected)
    for at, logits in enumerate(expected):
        if attention == "sdpa":  # as the engine attends
            assert torch.equal(alone[at], logits)
        torch.testing.assert_close(alone[at], logits, rtol=0, atol=1e-6 * largest)
        torch.testing.assert_close(together[at, -len(logits) :], logits, rtol=0, atol=2e-6 * largest)
        assert float((bare[at] - logits).abs().max()) > 0.1 * largest


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "mixtral", "phi3", "gemma3_text"])
def test_other_architectures(model_type: str, exported: Exported) -> None:
    """Among them transposed weights, a head that passes the base model by, fused projections and a mixture base."""
    lora, *_ = METHOD_CASES
    expected, model = exported(lora, model_type)[1], loaded(lora, exported, model_type)
    largest = max(float(logits.abs().max()) for logits in expected)
    with torch.no_grad():
        for row, logits in zip(ROWS, expected, strict=True):
            torch.testing.assert_close(model(ids_of(row)).logits[0], logits, rtol=0, atol=1e-5 * largest)


EXPERTS = {"num_experts": 2, "top_k": 1}


@pytest.mark.parametrize(
    ("model_type", "adapter"),
    [
        ("gpt2", {"method": "lora", "target_modules": "all-ffn"}),
        ("gpt2", {"method": "mixlora", **EXPERTS, "target_modules": ["c_fc", "mlp.c_proj", "c_attn"]}),
        ("gpt2", {"method": "llava_mole", "target_modules": "all-ffn", "attention": {"target_modules": "all-linear"}}),
        ("llama", {"method": "mixlora", **EXPERTS, "target_modules": ["up_proj", "q_proj", "v_proj"]}),
        ("llama", {"method": "mixlora", **EXPERTS, "target_modules": ["layers.1.mlp.up_proj"]}),
        ("llama", {"method": "mixlora", **EXPERTS, "expert_method": "dora", "routing": "dynamic", "top_k": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", [None, {"r": 2, "method": "dora", "target_modules": "own"}], ids=["", "own"])
def test_targets_of_every_kind_are_found_again(
    model_type: str, adapter: dict[str, Any], attention: dict[str, Any] | None, tmp_path: Path
) -> None:
    """Names that some other linear has too, those that only one layer means, and an attention with its own."""
    if attention is not None:
        if adapter["method"] == "lora":
            pytest.skip("it has no other part")
        own = {"gpt2": ["c_attn", "attn.c_proj"], "llama": ["q_proj"]}[model_type]
        adapter = {**adapter, "attention": {**attention, "target_modules": own}}
    base = base_of(config(model_type), scale=SCALE)
    made = ours.job(base, prepared((5,), seed=1), adapter).adapter
    generator = torch.Generator().manual_seed(4)
    for name in made.params:
        made.params[name].value.add_(0.1 * torch.randn(made.params[name].value.shape, generator=generator))
    made.begin_step()
    write_adapter(tmp_path, made.files(), {})
    model = mlora_sched.load_adapter(plain(model_type), tmp_path)
    (expected,) = ours.logits(base, made, ROWS[:1])
    with torch.no_grad():
        found = model(ids_of(ROWS[0])).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", "four", "adapter_config.json: r = 'four': Input should be a valid integer"),
        ("num_experts", 0, "adapter_config.json: num_experts = 0: Input should be greater than or equal to 1"),
        ("top_k", 3, "adapter_config.json: top_k 3 is more than num_experts 2; lower top_k"),
        ("expert_lora", "none", "adapter_config.json: expert_lora = 'none' is no section"),
        (
            "expert_lora",
            {"r": 4, "lora_alpha": -1},
            "adapter_config.json: lora_alpha = -1: Input should be greater than 0",
        ),
    ],
)
def test_experts_settings_that_mean_nothing(key: str, value: object, message: str, tmp_path: Path) -> None:
    made = ours.job(base_of(llama_config()), prepared((5,), seed=1), {"method": "mixlora", **EXPERTS}).adapter
    files = made.files()
    write_adapter(tmp_path, AdapterFiles(files.config | {key: value}, files.tensors), {})
    with pytest.raises(UserError, match=message):
        mlora_sched.load_adapter(plain(), tmp_path)


def generated(model: Any, **how: Any) -> Tensor:
    ids, mask = left_padded()
    torch.manual_seed(0)
    tokens: Tensor = model.generate(
        ids, attention_mask=mask, max_new_tokens=6, pad_token_id=0, eos_token_id=None, **how
    )
    return tokens[:, ids.shape[1] :]


@pytest.mark.parametrize("case", METHOD_CASES, ids=str)
def test_generation_with_a_cache_gives_the_tokens_of_one_without(case: MethodCase, exported: Exported) -> None:
    model, ids, mask = loaded(case, exported), *left_padded()
    for how in ({}, {"do_sample": True, "top_k": 5}, {"num_beams": 2}):
        assert torch.equal(generated(model, use_cache=True, **how), generated(model, use_cache=False, **how))
    tokens = torch.cat((ids, generated(model)), dim=1)  # the likeliest of the whole forward, one after another
    mask = torch.cat((mask, torch.ones_like(tokens[:, ids.shape[1] :])), dim=1)
    with torch.no_grad():
        likeliest = model(tokens, attention_mask=mask).logits.argmax(dim=-1)
    assert torch.equal(likeliest[:, ids.shape[1] - 1 : -1], tokens[:, ids.shape[1] :])


@pytest.mark.parametrize("case", [case for case in PEFT_CASES if case.method != "loraplus"], ids=str)
def test_peft_reads_the_same_files_and_agrees(case: MethodCase, exported: Exported) -> None:
    model = loaded(case, exported)
    theirs = peft.PeftModel.from_pretrained(plain(), str(exported(case)[0])).eval()
    with torch.no_grad():
        for row in ROWS:
            expected = theirs(input_ids=ids_of(row)).logits
            found = model(inputs_embeds=model.get_input_embeddings()(ids_of(row))).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    assert torch.equal(generated(model), generated(theirs))


def test_an_adapter_of_pefts_own_making_is_read(tmp_path: Path) -> None:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    theirs = peft.get_peft_model(plain(), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings))
    theirs.eval().save_pretrained(str(tmp_path))
    model = mlora_sched.load_adapter(plain(), str(tmp_path))
    with torch.no_grad():
        expected = theirs(input_ids=ids_of(ROWS[0])).logits
        found = model(ids_of(ROWS[0])).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_device_and_dtype_follow_the_model(exported: Exported) -> None:
    folder, expected = exported(case_of("mixlora"))
    model = mlora_sched.load_adapter(plain(dtype=torch.bfloat16), folder)
    with torch.no_grad():
        logits = model(ids_of(ROWS[1])).logits[0]
    assert logits.dtype == torch.bfloat16
    # a router near a tie may choose another expert after a rounding
    assert float((logits - expected[1]).abs().median() / expected[1].abs().max()) < 0.02
    with torch.autocast("cpu"), pytest.raises(BaseError, match="autocast would mix"):
        model(ids_of(ROWS[0]))
    model.float()
    with pytest.raises(BaseError, match=r"moved from torch\.bfloat16 on cpu"):
        model(ids_of(ROWS[0]))
    moved = plain(dtype=torch.bfloat16).float()
    with torch.no_grad():
        assert torch.equal(mlora_sched.unload_adapter(model)(ids_of(ROWS[0])).logits, moved(ids_of(ROWS[0])).logits)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_unloading_gives_the_model_back(model_type: str, exported: Exported) -> None:
    model, untouched = plain(model_type), plain(model_type)
    names = [(name, type(module)) for name, module in model.named_modules()]
    for case in METHOD_CASES if model_type == "llama" else METHOD_CASES[:1]:
        folder = exported(case, model_type)[0]
        mlora_sched.load_adapter(model, folder)
        with pytest.raises(BaseError, match="carries an adapter already"):
            mlora_sched.load_adapter(model, folder)
        assert mlora_sched.unload_adapter(model) is model
    assert [(name, type(module)) for name, module in model.named_modules()] == names
    assert all(torch.equal(value, untouched.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(ids_of(ROWS[0])).logits, untouched(ids_of(ROWS[0])).logits)
    with pytest.raises(BaseError, match="carries no adapter"):
        mlora_sched.unload_adapter(model)


def test_a_forward_that_fails_leaves_nothing_behind(exported: Exported) -> None:
    expected, model = exported(case_of("mixlora"))[1], loaded(case_of("mixlora"), exported)

    def interrupt(*_: object) -> None:  # as a cell of a notebook is; torch calls no hook of the decoder's then
        raise KeyboardInterrupt

    with torch.no_grad():
        with pytest.raises(BaseError, match="neither input_ids nor inputs_embeds"):
            model()
        with pytest.raises(IndexError):
            model(torch.full((1, 4), VOCAB))
        handle = model.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids_of(ROWS[1]))
        handle.remove()
        torch.testing.assert_close(model(ids_of(ROWS[0])).logits[0], expected[0], rtol=0, atol=1e-5)


def test_two_threads_do_not_mix(exported: Exported) -> None:
    """The second is refused, and the first goes on."""
    expected, model = exported(METHOD_CASES[0])[1], loaded(METHOD_CASES[0], exported)
    inside, caught = model.model.layers[1], []

    def other() -> None:
        with pytest.raises(BaseError, match="one forward at a time") as error:
            model(ids_of(ROWS[1]))
        caught.append(error)

    def amid(*_: object) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    inside.register_forward_pre_hook(amid)
    with torch.no_grad():
        logits = model(ids_of(ROWS[0])).logits[0]
    assert len(caught) == 1
    torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-5)


def _without_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def _pickled(folder: Path) -> None:
    (folder / MODEL).rename(folder / "adapter_model.bin")


def _cut(folder: Path) -> None:
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-1])


def _not_finite(folder: Path) -> None:
    tensors = load_file(folder / MODEL)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, folder / MODEL)


def _settings(**change: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(found | change))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without_config, "is no adapter's directory: it has no adapter_config.json"),
        (_pickled, "which is never read: save the adapter again as safetensors"),
        (_cut, "cannot be read as a PEFT adapter"),
        (_not_finite, "not finite"),
        (
            _settings(r=3),
            r"does not fit this llama model, by its tensor base_model\.model\.\S+; it was trained on 'tiny'",
        ),
        (
            _settings(r=5),
            r"does not fit .*: its adapter_config\.json asks for \d+ numbers or more, its tensors have \d+",
        ),
        (_settings(target_modules=["q_proj"]), "does not fit this llama model"),
        (_settings(target_modules=["query"]), "'query' is no linear of base"),
        (_settings(peft_type="VERA"), "says peft_type = 'VERA'"),
        (_settings(alpha_pattern={"q_proj": 2}), "sets alpha_pattern"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_is_no_adapter_for_it_is_refused(
    damage: Callable[[Path], None], says: str, exported: Exported, tmp_path: Path
) -> None:
    """And the model is as it was."""
    shutil.copytree(exported(METHOD_CASES[0])[0], tmp_path / "damaged")
    damage(tmp_path / "damaged")
    model = plain()
    with pytest.raises(UserError, match=f"damaged.* ?{says}"):
        mlora_sched.load_adapter(model, tmp_path / "damaged")
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert model.model.layers[0].mlp.up_proj.weight.requires_grad


def _quantized() -> Any:
    model = plain()
    model.model.layers[0].mlp.up_proj.weight = _Packed(torch.zeros(96, 64), requires_grad=False)
    return model


class _Packed(torch.nn.Parameter):
    """As bitsandbytes has its own kinds of parameters."""


def _on_two_dtypes() -> Any:
    model = plain()
    model.model.layers[1].bfloat16()
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (_quantized, "quantised.*load it without quantization_config"),
        (_on_two_dtypes, r"torch\.bfloat16 on cpu, torch\.float32 on cpu; load it in one dtype"),
        (lambda: plain().model, "LlamaModel is no causal language model"),
        (lambda: torch.nn.Linear(2, 2), "Linear is no causal language model"),
        (lambda: plain().to("meta"), "torch.float32 on meta"),
        (lambda: peft.get_peft_model(plain(), peft.LoraConfig(task_type="CAUSAL_LM")), "an adapter of PEFT's"),
    ],
    ids=["quantized", "two-dtypes", "decoder", "linear", "meta", "peft"],
)
def test_models_that_cannot_carry_one_are_refused(model: Callable[[], Any], says: str, exported: Exported) -> None:
    with pytest.raises(BaseError, match=says):
        mlora_sched.load_adapter(model(), exported(METHOD_CASES[0])[0])


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, mlora_sched; mlora_sched.load_adapter; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"
