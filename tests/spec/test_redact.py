"""Secrets go, all else stays, and what was redacted once is not changed again."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.spec.redact import REDACTED, is_secret_name, redact, redact_values

LETTERS = string.ascii_letters + string.digits
BODY = st.text(LETTERS, min_size=40, max_size=60).map("x7{}".format)
FORMS = st.sampled_from(
    [
        "Bearer {}",
        "authorization: bearer {}",
        "hf_{}",
        "sk-{}",
        "sk-proj-{}",
        "mlora_{}",
        "ghp_{}",
        "https://ann:{}@example.org/x",
        "postgresql://:{}@db",
        "HF_TOKEN={}",
        "wandb_api_key: '{}'",
        '{"password": "{}"}',
        "?access_token={}&x=1",
        "client-secret = {}",
        "TOKEN={}",
        "MLORA_SCHED_TOKEN={}",
        '"token": "{}"',
        "db_pwd={}",
        "eyJhbGciOiJIUzI1NiJ9.eyJ{}.{}",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n{}",
    ]
)
AROUND = st.text("abcxyz .,:;()/\n'\"=", max_size=20)


@given(AROUND, FORMS, BODY, AROUND)
def test_a_secret_is_gone_wherever_it_stands(before: str, form: str, secret: str, after: str) -> None:
    text = f"{before} {form.replace('{}', secret)} {after}"
    clean = redact(text)
    assert secret not in clean
    assert REDACTED in clean
    assert redact(clean) == clean


@given(st.text(string.ascii_lowercase + " .,-/()\n0123456789", max_size=200))
def test_words_stay(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 4096 of 10000 used",
        "max_tokens=1024, tokenizer: fast",
        "/run/mlora_sched/daemon.sock",
        "job j-3839d77b3839d77b3839d77b3839d77b is RUNNING",
        "no file 0000000000000000000000000000000000000000000000000000000000000000 of yours",
        "eos_token: </s>",
        "https://example.org:8080/path@2",
        "task-force sk-learn hf_model",
        "t-0123456789abcdef was revoked",
        "token of ann was revoked",
        "basic question answering",
        "a basic classifier baseline",
        "the bearer certificate",
        "Basic training of datasets",
        "branch sk-learn-pipeline-v2",
        "model sk-hynix-hbm3e-benchmark",
        "sk-learn_pipeline_version_2024_final",
        "pad_token: token-0123456789abcdef, image_token=img0123456789",
        "token_type: wordpiece30522, token=4096000000, stop_token: <|im_end2|>",
        "PWD=/home/ann/project2, pwd: ~/project2",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
def test_our_own_words_stay(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=300))
def test_any_text_is_taken_and_the_second_time_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


PATHOLOGICAL = (
    "a:" * 50_000,
    "a_" * 50_000 + "token",
    "http://" + "x:" * 50_000,
    "password=" * 20_000,
    "sk-" * 50_000,
    "sk-a_" * 50_000,
    "eyJ-" * 50_000,
    "eyJaaaaaaaa." * 20_000,
    "token=" * 50_000,
    "bearer " * 50_000,
    "authorization: basic" + " " * 200_000,
    "-----BEGIN PRIVATE KEY-----" * 10_000,
    "-----BEGIN " * 20_000,
)


def test_long_texts_take_no_long_time() -> None:
    for text in PATHOLOGICAL:
        redact(text)  # the limit of a test is five minutes; a pattern that goes back and forth would take hours


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("token", True),
        ("hfToken", True),
        ("HF_TOKEN", True),
        ("wandb_api_key", True),
        ("apiKey", True),
        ("APIKey", True),
        ("db.password", True),
        ("aws-secret-access-key", True),
        ("max_tokens", False),
        ("pwd", True),
        ("eos_token", False),
        ("eosToken", False),
        ("additional_special_token", False),
        ("token_type", False),
        ("token_ids", False),
        ("token_budget", False),
        ("cost_per_token", False),
        ("image_token_index", False),
        ("tokenizer", False),
        ("key", False),
        ("api", False),
        ("keyboard", False),
        ("secretary", False),
        ("", False),
    ],
)
def test_names_that_say_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(string.ascii_lowercase + " ", max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), JSON), BODY, st.sampled_from(["api_key", "note"]))
def test_metadata_loses_its_secrets_and_nothing_else(values: dict, secret: str, key: str) -> None:  # type: ignore[type-arg]
    assert redact_values(values) == (values, ())
    value = secret if key == "api_key" else f"see hf_{secret}"
    clean, found = redact_values({**values, "deep": [values, {key: value}]})
    assert found == (f"deep[1].{key}",)
    assert secret not in json.dumps(clean)
    assert clean["deep"][0] == values  # type: ignore[index]
    assert redact_values(clean) == (clean, ())


@pytest.mark.parametrize(
    "values",
    [
        {"token": None, "password": "", "api_key": True, "credentials": False},
        {"token": 1, "secret_sauce": "yes", "token_budget": 4096, "cost_per_token": 0.5, "token_ids": [1, 2]},
        {"pad_token": "<|endoftext|>", "stop_token": "<|im_end|>", "bos_token": "beginning"},
        {"token_type": "wordpiece-30k", "image_token_index": 32_000, "pwd": "/home/ann/x"},
        {"note": ["basic question answering", "sk-learn-pipeline-v2"]},
    ],
)
def test_ordinary_metadata_stay(values: dict) -> None:  # type: ignore[type-arg]
    assert redact_values(values) == (values, ())


@pytest.mark.parametrize(
    ("values", "clean", "where"),
    [
        (
            {"credentials": {"n": 1, "x": ["hunter2hunter2"]}},
            {"credentials": {"n": 1, "x": [REDACTED]}},
            "credentials.x[0]",
        ),
        ({"db_pwd": "hunter2"}, {"db_pwd": REDACTED}, "db_pwd"),
        ({"hubToken": "abcdefgh"}, {"hubToken": REDACTED}, "hubToken"),
        ({f"hf_{'a1' * 10}": {"n": 1}}, {REDACTED: {"n": 1}}, REDACTED),
        ({"note": ["x", "TOKEN=abcdefgh12345"]}, {"note": ["x", f"TOKEN={REDACTED}"]}, "note[1]"),
    ],
)
def test_secret_metadata_go(values: dict, clean: dict, where: str) -> None:  # type: ignore[type-arg]
    assert redact_values(values) == (clean, (where,))
    assert redact_values(clean) == (clean, ())
