"""Making the toy base: same bytes for the same recipe, an ordinary Hugging Face directory, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlora_sched.cli.local.base import base
from mlora_sched.errors import Refused, UserError
from mlora_sched.toybase.train import RECIPE_FILE, SHAPES, Made, Progress, Recipe, Size, make_base

_FEW = Recipe.of(Size.TINY, steps=3, seed=5)


def _hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases") / "tiny"
    assert make_base(directory, _FEW) is Made.NEW
    return directory


def test_same_recipe_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever the process did before must not matter
    assert make_base(tmp_path / "other-name", _FEW) is Made.NEW
    assert _hashes(tmp_path / "other-name") == _hashes(made)


def test_another_seed_gives_other_weights(made: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "b", Recipe.of(Size.TINY, steps=3, seed=6))
    assert _hashes(tmp_path / "b")["model.safetensors"] != _hashes(made)["model.safetensors"]


def test_random_state_and_threads_of_the_caller_stay(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    make_base(tmp_path / "b", Recipe.of(Size.TINY, steps=0, threads=1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_loads_as_any_other_base(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert 0.8e6 < model.num_parameters() < 1.2e6
    assert model.dtype is torch.float32
    assert len(tokenizer) <= model.config.vocab_size
    config = model.generation_config
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    ids = tokenizer("What is 3 plus 4?", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    assert torch.isfinite(model(ids).logits).all()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses: list[Progress] = []
    make_base(tmp_path / "b", Recipe(Size.TINY, steps=25, rows=16), losses.append)
    assert [it.step for it in losses] == list(range(1, 26))
    assert sum(it.loss for it in losses[-5:]) / 5 < 0.9 * losses[0].loss


@pytest.mark.parametrize(("size", "parameters"), [(Size.SMALL, 5e6), (Size.BENCH, 54e6)])
def test_larger_sizes_have_their_shape(size: Size, parameters: float, tmp_path: Path) -> None:
    make_base(tmp_path / "b", Recipe.of(size, steps=0))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert model.num_parameters() == pytest.approx(parameters, rel=0.1)
    assert model.config.vocab_size == SHAPES[size].vocabulary


def test_bench_is_left_untrained() -> None:
    assert Recipe.of(Size.BENCH).steps == 0


def test_the_same_recipe_again_is_the_cache(made: Path) -> None:
    before = _hashes(made)
    assert make_base(made, _FEW, lambda _: pytest.fail("trained again")) is Made.CACHED
    assert _hashes(made) == before


def test_another_recipe_is_refused_by_what_differs(made: Path) -> None:
    before = _hashes(made)
    with pytest.raises(Refused, match=r"another recipe \(differs in: seed, corpus\)"):
        make_base(made, Recipe.of(Size.TINY, steps=3, seed=6))
    assert _hashes(made) == before


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(Refused, match="not empty"):
        make_base(tmp_path, _FEW)
    assert [it.name for it in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / RECIPE_FILE).write_text(content)
    with pytest.raises(Refused):
        make_base(tmp_path, _FEW)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("")
    with pytest.raises(Refused, match="is a file"):
        make_base(tmp_path / "base", _FEW)


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make_base(tmp_path / "file" / "base", _FEW)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_base(tmp_path / "b", _FEW, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert make_base(tmp_path / "b", Recipe.of(Size.TINY, steps=0)) is Made.NEW
    assert json.loads((tmp_path / "b" / RECIPE_FILE).read_text())["steps"] == 0
    assert [it.name for it in tmp_path.iterdir()] == ["b"]


def test_command_makes_then_finds(tmp_path: Path) -> None:
    arguments = ["make", str(tmp_path / "b"), "--steps", "1", "--seed", "2", "--threads", "1"]
    first, second = (CliRunner().invoke(base, arguments, catch_exceptions=False) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert "the tiny base is made (1 steps, seed 2)" in first.stdout
    assert "already there" in second.stdout
