"""Secrets never leave; figures that only sound like secrets stay."""

import pytest

from infra.redact import HIDDEN, redact, redact_text

CANARY = "canary-5e1f"


@pytest.mark.parametrize(
    "name",
    ["token", "hf_token", "hfToken", "HF_TOKEN", "api_key", "apikey", "api-key", "password", "dbPassword",
     "client_secret", "secrets", "credentials", "Authorization", "access_keys", "model.hub.token"],
)  # fmt: skip
def test_a_value_under_a_secret_name_is_hidden(name):
    assert redact({name: CANARY}) == {name: HIDDEN}
    assert CANARY not in str(redact({"outer": [{name: [CANARY]}]}))


def test_everything_inside_a_secret_mapping_is_hidden():
    assert redact({"secrets": {"mail": CANARY, "pin": 1234}}) == {"secrets": {"mail": HIDDEN, "pin": HIDDEN}}


@pytest.mark.parametrize(
    "value",
    [{"tokens": 5}, {"tokens_per_second": 1.5}, {"tokenizer": "bytes"}, {"num_key_value_heads": 8},
     {"batch_tokens": 4096}, {"token": None},
     {"sources": ["gs://bucket/books/*.txt", "/a/b@c/d.txt"]}, {"init": "mailto:a@b.c"}],
)  # fmt: skip
def test_what_only_sounds_secret_stays(value):
    assert redact(value) == value


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{CANARY}@host/path", f"postgresql+psycopg2://{CANARY}@host/db", f"https://h/p?access_token={CANARY}",
        f"https://h/p?a=1&X-Goog-Signature={CANARY}&b=2", f"python flow.py model.hub_token={CANARY} steps=3",
        f"train --api-key {CANARY} --steps 3", f"Authorization: Bearer {CANARY}", f"password: {CANARY}",
    ],
)  # fmt: skip
def test_a_secret_inside_text_is_hidden(text):
    clean = redact_text(text)
    assert CANARY not in clean
    assert HIDDEN in clean


def test_known_shapes_are_hidden_under_any_name():
    assert redact({"note": "use hf_" + "a" * 30}) == {"note": f"use {HIDDEN}"}


def test_an_ordinary_command_is_untouched():
    command = (
        "python flows/full_curriculum.py curriculum=tiny placement=local root=gs://bucket/runs train.tokens=100000"
    )
    assert redact_text(command) == command
