"""`sweep:` in a spec: what it becomes, that it is the same everywhere, and how mistakes in it are told."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.errors import SpecError
from mlora_sched.spec.job import JobSpec, parse_job
from mlora_sched.spec.override import parse_override
from mlora_sched.spec.sweep import MAX_TRIALS, Sweep, SweepSpec, parse_document, read_document

DATA = {"train": "a.jsonl", "validation": 0.1}


def sweep_of(raw: dict[str, Any], **job: Any) -> Sweep:
    found = parse_document({"name": "lr", "data": DATA, "sweep": raw, **job})
    assert isinstance(found, Sweep)
    return found


def refusal(raw: object, **job: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_document({"name": "lr", "data": DATA, "sweep": raw, **job}, "a.yaml")
    return caught.value.message


def test_a_document_without_sweep_is_a_job() -> None:
    assert parse_document({"name": "lr", "data": DATA}) == parse_job({"name": "lr", "data": DATA})


def test_a_grid_is_every_combination_in_order() -> None:
    rates, ranks = [1e-3, 1e-4], [8, 16, 32]
    raw = {"parameters": {"training.learning_rate": {"values": rates}, "adapter.r": {"values": ranks}}}
    trials = sweep_of(raw, training={"epochs": 1}).trials()
    assert [trial.spec.name for trial in trials] == [f"lr-t{number:02d}" for number in range(1, 7)]
    got = [(trial.spec.training.learning_rate, trial.spec.adapter.r) for trial in trials]
    assert got == list(itertools.product(rates, ranks))
    assert all(trial.spec.training.epochs == 1 for trial in trials)


def test_a_trial_is_the_job_that_its_values_make_of_the_spec() -> None:
    """Also where a value changes what other fields there are: defaults are filled in after it is set."""
    raw = {"parameters": {"adapter.method": {"values": ["lora", "mixlora"]}}}
    first, second = sweep_of(raw, adapter={"r": 4}).trials()
    assert first.spec == parse_job({"name": "lr-t01", "data": DATA, "adapter": {"method": "lora", "r": 4}})
    assert second.spec == parse_job({"name": "lr-t02", "data": DATA, "adapter": {"method": "mixlora", "r": 4}})


def test_the_attention_beside_experts_can_vary() -> None:
    """Also where the spec itself has no section of it, or other keys in it."""
    raw = {"parameters": {"adapter.attention.r": {"values": [2, 4]}}}
    for given_too in ({}, {"attention": {"method": "rslora"}}):
        adapter = {"method": "mixlora", **given_too}
        for trial, rank in zip(sweep_of(raw, adapter=adapter).trials(), (2, 4), strict=True):
            wanted = {"method": "mixlora", "attention": {**given_too.get("attention", {}), "r": rank}}
            assert trial.spec.adapter == parse_job({"name": "lr", "data": DATA, "adapter": wanted}).adapter
    assert "adapter.attention: unknown key; it does not go with method dynmole" in refusal(
        raw, adapter={"method": "dynmole"}
    )


def test_what_travels_makes_the_same_trials() -> None:
    raw = {"parameters": {"adapter.method": {"values": ["lora", "mixlora"]}}, "stop": {"rule": "asha"}}
    sweep = sweep_of(raw, adapter={"r": 4})
    body = sweep.model_dump_json(exclude_unset=True)
    assert Sweep.model_validate_json(body).trials() == sweep.trials()


PLACES = st.integers(1, 60)


@given(trials=PLACES, seed=st.integers(0, 2**62), low=st.floats(1e-8, 1.0), span=st.floats(2.0, 1e4))
def test_log_uniform_draws_one_in_each_part_of_the_range(trials: int, seed: int, low: float, span: float) -> None:
    parameters = {"training.learning_rate": {"log_uniform": [low, low * span]}}
    raw = {"parameters": parameters, "method": "random", "trials": trials, "seed": seed}
    spec = SweepSpec.model_validate(raw)
    rates = [float(str(values["training.learning_rate"])) for values in spec.draws()]
    assert rates == [values["training.learning_rate"] for values in SweepSpec.model_validate(raw).draws()]
    for part, rate in enumerate(sorted(rates)):
        place = math.log(rate / low) / math.log(span) * trials
        assert part - 1e-2 <= place <= part + 1 + 1e-2, "but for what rounding to six digits does"


@given(
    lists=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    trials=PLACES,
    seed=st.integers(0, 1000),
)
def test_drawn_combinations_are_different(lists: list[int], trials: int, seed: int) -> None:
    fields = ["training.batch_size", "adapter.r", "training.chunk_tokens"]
    raw: dict[str, Any] = {
        "parameters": {field: {"int_uniform": [16, 16 + n]} for field, n in zip(fields, lists, strict=False)},
        "method": "random",
        "trials": min(trials, math.prod(n + 1 for n in lists)),
        "seed": seed,
    }
    draws = [tuple(values.items()) for values in SweepSpec.model_validate(raw).draws()]
    assert len(draws) == len(set(draws)) == raw["trials"]
    assert all(16 <= int(str(value)) <= 25 for values in draws for _, value in values)


def test_other_seeds_draw_otherwise() -> None:
    raw: dict[str, Any] = {"parameters": {"training.learning_rate": {"uniform": [0, 1]}}, "method": "random"}
    drawn = {tuple(map(str, SweepSpec.model_validate(raw | {"trials": 3, "seed": seed}).draws())) for seed in range(9)}
    assert len(drawn) == 9


def test_set_reaches_into_a_sweep() -> None:
    text = b"""
name: lr
data: {train: a.jsonl, validation: 0.1}
sweep:
  method: random
  trials: 32
  parameters:
    training.learning_rate: {log_uniform: [1e-5, 1e-2]}
"""
    sweep = read_document(text, "a.yaml", [parse_override("sweep.trials=3"), parse_override("training.epochs=2")])
    assert isinstance(sweep, Sweep)
    assert [trial.spec.training.epochs for trial in sweep.trials()] == [2, 2, 2]
    with pytest.raises(SpecError, match=r"^--set sweep.trials: 0: should be greater than or equal to 1"):
        read_document(text, "a.yaml", [parse_override("sweep.trials=0")])


LR = "training.learning_rate"
GRID = {"parameters": {LR: {"values": [1e-3, 1e-4]}}}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (7, "a.yaml: sweep: 7: is no section of keys"),
        (
            {"parameters": {LR: [1, 2]}},
            f"sweep.parameters.{LR}: [1, 2]: is no section of keys; write {{values: [...]}} or",
        ),
        (GRID | {"stop": "asha"}, "a.yaml: sweep.stop: 'asha': is no section of keys; write {rule: asha}"),
        (
            GRID | {"stop": {"rule": "median", "factor": 3}},
            "sweep.stop.factor: unknown key; it does not go with this rule",
        ),
        ({}, "sweep.parameters: is missing"),
        ({"parameters": {LR: {}}}, "has nothing; write exactly one of values, uniform"),
        ({"parameters": {LR: {"values": [1], "uniform": [0, 1]}}}, "has values, uniform; write exactly one"),
        ({"parameters": {LR: {"values": [1e-3, 1e-3]}}}, "values: 0.001 is there twice"),
        ({"parameters": {LR: {"log_uniform": [0, 1]}}}, "log_uniform: 0 has no logarithm"),
        ({"parameters": {LR: {"uniform": [1, 0]}}}, "uniform: [1.0, 0.0] is no range; write the lower end first"),
        ({"parameters": {"data.train": {"values": ["b"]}}}, "'data.train': a sweep goes over fields of training and"),
        ({"parameters": {"training.lerning_rate": {"values": [1]}}}, "did you mean training.learning_rate?"),
        ({"parameters": {LR: {"values": [-1]}}}, "training.learning_rate: -1: should be greater than 0"),
        ({"parameters": {LR: {"uniform": [0, 1]}}}, "is a range, and a grid takes none; write values: [...], or"),
        ({"parameters": {LR: {"uniform": [0, 1]}}, "method": "random"}, "method random needs it, such as trials: 32"),
        (GRID | {"trials": 2}, "trials: 2: a grid has all its combinations; leave it out"),
        (GRID | {"method": "random", "trials": 3}, "trials: 3: there are 2 combinations only; lower it, or"),
        (GRID | {"method": "random", "trials": MAX_TRIALS + 1}, f"should be less than or equal to {MAX_TRIALS}"),
        (GRID | {"metric": "loss_of_eval"}, "sweep.metric: 'loss_of_eval': should be 'eval_loss', 'eval_accuracy' or"),
        (GRID | {"stop": {"rule": "asha", "factor": 1}}, "sweep.stop.factor: 1: should be greater than or equal to 2"),
        (GRID | {"stop": {"rule": "hyperband"}}, "sweep.stop.rule: 'hyperband' is no rule; choose one of asha, median"),
        ({"parameters": {LR: {"values": [1, 1.0]}}}, "trials 1 and 2 are the same job (learning_rate=1)"),
    ],
)
def test_a_mistake_names_field_value_and_remedy(raw: object, message: str) -> None:
    assert message in refusal(raw)


def test_too_large_a_grid_is_refused() -> None:
    raw = {"parameters": {LR: {"values": list(range(1, 100))}, "adapter.r": {"values": [1, 2, 3]}}}
    assert "the grid has 297 combinations, more than 256; give fewer values" in refusal(raw)


def test_the_metric_needs_rows() -> None:
    raw = {"name": "lr", "data": {"train": "a.jsonl"}, "sweep": GRID}
    with pytest.raises(SpecError, match=r"eval_loss needs held-out rows; write data.validation, or metric: loss"):
        parse_document(raw)
    assert isinstance(parse_document(raw | {"sweep": GRID | {"metric": "loss"}}), Sweep)


def test_verbs_that_train_one_job_take_no_sweep() -> None:
    with pytest.raises(SpecError, match="sweep: stands for many jobs"):
        parse_job({"name": "lr", "data": DATA, "sweep": GRID})


def test_a_spec_itself_must_be_right() -> None:
    assert refusal(GRID, adapter={"rr": 1}).startswith("a.yaml: adapter.rr: unknown key")
    assert isinstance(sweep_of(GRID).spec, JobSpec)
