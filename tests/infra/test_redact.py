"""Secrets never leave; figures that only sound like secrets stay."""

import time

import pytest

from infra.redact import HIDDEN, holds_credentials, redact, redact_text

CANARY = "canary-5e1f"


@pytest.mark.parametrize(
    "name",
    ["token", "hf_token", "hfToken", "HF_TOKEN", "api_key", "apikey", "api-key", "password", "dbPassword",
     "client_secret", "secrets", "credentials", "Authorization", "access_keys", "model.hub.token", "db_pwd"],
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
        f"postgresql://u:p@{CANARY}@host/db", f'{{"password": "{CANARY}"}}', f"{{'hf_token': '{CANARY}'}}",
        f'client(api_key="{CANARY}")', f"token={'7' * 8}{CANARY}",
        f"...token={CANARY}", f"1http://u:{CANARY}@h", f"_token={CANARY}", f"---token={CANARY}", f"a/token={CANARY}",
    ],
)  # fmt: skip
def test_a_secret_inside_text_is_hidden(text):
    clean = redact_text(text)
    assert CANARY not in clean
    assert HIDDEN in clean


@pytest.mark.parametrize(
    "key", ["hf_" + "a" * 30, "ghp_" + "a" * 30, "xoxb-" + "1" * 20, "ASIA" + "A" * 16, "AIza" + "b" * 35,
            "glpat-" + "c" * 20, "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln"],
)  # fmt: skip
def test_known_shapes_are_hidden_under_any_name(key):
    assert redact({"note": f"use {key}"}) == {"note": f"use {HIDDEN}"}
    assert holds_credentials(f"use {key}")


def test_secrets_of_the_environment_are_hidden_wherever_they_are_repeated(monkeypatch):
    monkeypatch.setenv("WRITER_KEY", CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://writer:open%2Fsesame@host/ml")
    monkeypatch.setenv("SIGNING_KEY_FILE", "/etc/keys/signing.pem")  # a place, not a key
    monkeypatch.setenv("SHORT_TOKEN", "step")
    told = redact_text(f"401 for {CANARY}: 'open/sesame' and 'open%2Fsesame' at step 3, see /etc/keys/signing.pem")
    assert told == f"401 for {HIDDEN}: '{HIDDEN}' and '{HIDDEN}' at step 3, see /etc/keys/signing.pem"


@pytest.mark.parametrize(
    ("text", "found"),
    [(f"https://u:{CANARY}@host/x.txt", True), (f"gs://b/x?X-Goog-Signature={CANARY}", True),
     ("gs://bucket/books/*.txt", False), ("api_key_env=WRITER_KEY", False), ("key: of the door, a@b.c", False)],
)  # fmt: skip
def test_what_is_written_down_to_be_kept_may_name_a_place_but_hold_no_key(text, found):
    assert holds_credentials(text) == found


@pytest.mark.parametrize("piece", ["a", "a.", "a-", "é", "x=1 ", "'", "a: '", "a://", "a ", "--a ", "eyJ-", "-"])
def test_a_long_line_costs_no_more_than_many_short_ones(piece):
    begun = time.process_time()
    redact_text(piece * 40_000)
    assert time.process_time() - begun < 2  # tried at every letter it would be half a minute


def test_an_ordinary_command_is_untouched():
    command = (
        "python flows/full_curriculum.py curriculum=tiny placement=local root=gs://bucket/runs train.tokens=100000 "
        "model.num_key_value_heads=8"
    )
    assert redact_text(command) == command
