"""Ids that mean the text and nothing else, in an artifact that cannot change unseen."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data import tokenizers
from ringworld.data.files import write_bytes
from ringworld.data.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    check_same,
    from_huggingface,
    from_sentencepiece,
    load_tokenizer,
    train_bpe,
)
from ringworld.errors import UserError

SENTENCEPIECE = str(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1")
TEXT = "It was a bright day, isn't it?\n\n  The clocks  were striking 13:\tnaïve café 漢字 😀.\r\n" * 40


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([TEXT], 400)  # so little text has 63 merges, and 256 + 63 + 2 ids


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return from_sentencepiece(SENTENCEPIECE)


@pytest.fixture(scope="module")
def huggingface(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A folder as transformers writes it, with special tokens and a template that adds one."""
    from tokenizers import Tokenizer as Model
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    model = Model.from_buffer(bpe.files["tokenizer.json"])
    model.add_special_tokens(["<s>", "</s>"])
    start = model.token_to_id("<s>")
    model.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    folder = tmp_path_factory.mktemp("huggingface")
    PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return from_huggingface(str(folder))


FAMILIES = ["bytes", "bpe", "huggingface", "sentencepiece"]


def family(request: pytest.FixtureRequest, name: str) -> Tokenizer:
    return ByteTokenizer() if name == "bytes" else request.getfixturevalue(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_survives_the_round_trip(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer = family(request, name)

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\u2581"), max_size=40))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids.tolist())
        assert tokenizer.decode(ids) == text

    check()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_special_token_spelled_in_a_document_is_plain_text(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer = family(request, name)
    ids = tokenizer.encode("a </s> b <s> <|endoftext|>")
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == "a </s> b <s> <|endoftext|>"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_text_has_the_ids_of_the_whole(
    request: pytest.FixtureRequest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = family(request, name)
    whole = tokenizer.encode(TEXT)
    for limit in (29, 61, 1000):
        monkeypatch.setattr(type(tokenizer), "piece_characters", limit)
        monkeypatch.setattr(tokenizers, "_BATCH_CHARACTERS", 2 * limit)
        assert np.array_equal(tokenizer.encode_batch(["x", TEXT, ""])[1], whole), limit


@pytest.mark.parametrize("name", FAMILIES)
def test_an_artifact_is_all_of_the_tokenizer(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    tokenizer = family(request, name)
    tokenizer.save(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded, loaded.hash) == (tokenizer, tokenizer.hash)
    assert np.array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))


def test_a_changed_artifact_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(str(tmp_path))
    write_bytes(str(tmp_path / "model" / "tokenizer.json"), train_bpe([TEXT], 300).files["tokenizer.json"])
    with pytest.raises(UserError, match="do not match their hash"):
        load_tokenizer(str(tmp_path))


def test_training_gives_the_same_tokenizer_in_another_process(bpe: Tokenizer) -> None:
    code = (
        "import sys; from ringworld.data.tokenizers import train_bpe; "
        "print(train_bpe([sys.stdin.buffer.read().decode()], 400).hash)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=TEXT.encode(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == bpe.hash


@pytest.mark.parametrize("character", ["a", " "])
def test_one_endless_word_takes_seconds(character: str) -> None:
    began = time.monotonic()
    text = character * 2_000_000
    tokenizer = train_bpe([text, TEXT], 400)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.monotonic() - began < 10


def test_known_tokenizers_have_their_known_ids(
    sentencepiece: Tokenizer, huggingface: Tokenizer, bpe: Tokenizer
) -> None:
    assert (sentencepiece.vocabulary_size, sentencepiece.bos_id, sentencepiece.eos_id) == (32000, 1, 2)
    assert sentencepiece.encode("Hello world").tolist() == [22557, 1526]
    assert (bpe.vocabulary_size, bpe.bos_id, bpe.eos_id) == (321, 319, 320)
    assert (huggingface.vocabulary_size, huggingface.bos_id, huggingface.eos_id) == (321, 319, 320)
    assert np.array_equal(huggingface.encode(TEXT), bpe.encode(TEXT))


def test_two_tokenizers_do_not_mix(bpe: Tokenizer) -> None:
    check_same(bpe.hash, bpe.hash, "here")
    with pytest.raises(UserError, match=r"^here: .* cannot be mixed"):
        check_same(bpe.hash, ByteTokenizer().hash, "here")


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=str(tmp_path)):
        from_huggingface(str(tmp_path))
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"x\.model.*no SentencePiece model"):
        from_sentencepiece(str(tmp_path / "x.model"))
    with pytest.raises(UserError, match="vocabulary=257"):
        train_bpe(["x"], 257)
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(str(tmp_path / "none"))
