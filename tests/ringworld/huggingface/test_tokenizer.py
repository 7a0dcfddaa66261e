"""An exported tokenizer gives every text the ids that the model was trained on, in transformers."""

import io

import numpy as np
import pytest

from ringworld.data.conversations import Turn
from ringworld.data.templates import PlainTemplate, template_of
from ringworld.data.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    from_huggingface,
    from_sentencepiece,
    train_bpe,
)
from ringworld.errors import UserError
from ringworld.huggingface.tokenizer import check_vocabulary, write_tokenizer
from tests.ringworld.huggingface.folders import LLAMA

TEXTS = ["the whale, the whale!", "  spaces  and\n\nlines\t", "naïve 中文 🙂", "x = f(y)  # <s> or </s> in a text", ""]
CORPUS = [f"the quick brown fox jumps over {n} lazy dogs, and the whale sings" for n in range(200)]


def sentencepiece(folder, normalization: str) -> SentencePieceTokenizer:
    import sentencepiece as library

    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, vocab_size=330, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name=normalization, minloglevel=2,
        remove_extra_whitespaces=normalization != "identity",
    )  # fmt: skip
    file = folder / f"{normalization}.model"
    file.write_bytes(written.getvalue())
    return from_sentencepiece(str(file))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    return {
        "bytes": ByteTokenizer(),
        "bpe": train_bpe(CORPUS, 320),
        "sentencepiece": sentencepiece(tmp_path_factory.mktemp("sp"), "identity"),
    }


@pytest.mark.parametrize("family", ["bytes", "bpe", "sentencepiece"])
def test_transformers_gives_the_same_ids(tokenizers, tmp_path, family):
    from transformers import AutoTokenizer

    ours = tokenizers[family]
    written = write_tokenizer(str(tmp_path), ours, 512, chats=False)
    assert (written.note, written.template) == ("", None)
    peer = AutoTokenizer.from_pretrained(str(tmp_path))
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    for text in TEXTS:
        plain = text.replace("<s> or </s>", "")  # spelled out, transformers makes these the special tokens
        assert peer(plain)["input_ids"] == ours.encode(plain).tolist()
        assert peer.decode(peer(plain)["input_ids"]) == ours.decode(ours.encode(plain))
    back = from_huggingface(str(tmp_path))
    assert (back.vocabulary_size, back.eos_id) == (ours.vocabulary_size, ours.eos_id)
    for text in TEXTS:
        np.testing.assert_array_equal(back.encode(text), ours.encode(text))


def test_a_model_with_its_own_normalization_is_said_to_be_unconverted(tmp_path):
    ours = sentencepiece(tmp_path, "nmt_nfkc")
    written = write_tokenizer(str(tmp_path / "out"), ours, 512, chats=False)
    assert "tokenizer.json could not be written" in written.note
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == ours.files["tokenizer.model"]


def test_what_the_model_was_not_trained_on_is_not_put_before_a_text(tmp_path):
    """A Llama-3 tokenizer begins every text with a token; the stages' examples do not."""
    from tokenizers import Tokenizer as Model
    from tokenizers import models, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    model = Model(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path / "in")
    ours = from_huggingface(str(tmp_path / "in"))
    write_tokenizer(str(tmp_path / "out"), ours, 512, chats=False)
    assert AutoTokenizer.from_pretrained(str(tmp_path / "in"))("a")["input_ids"] == [1, 0]
    assert AutoTokenizer.from_pretrained(str(tmp_path / "out"))("a")["input_ids"] == [0] == ours.encode("a").tolist()


CHATS = (
    (Turn("user", "Which whale?"),),
    (Turn("user", "Which whale?"), Turn("assistant", "The white one."), Turn("user", "Since when?")),
    (Turn("system", "Be brief."), Turn("user", "Which whale?")),
)


def test_the_plain_template_is_written_as_jinja(tokenizers, tmp_path):
    ours = tokenizers["bpe"]
    write_tokenizer(str(tmp_path), ours, 512, chats=True)
    back = from_huggingface(str(tmp_path))
    found = template_of(back)
    assert found.name == "jinja"
    found.check()
    for turns in CHATS:
        np.testing.assert_array_equal(found.prompt(turns), PlainTemplate(ours).prompt(turns))
    whole = [*CHATS[1], Turn("assistant", "Always.")]
    theirs, plain = found.encode([whole])[0], PlainTemplate(ours).encode([whole])[0]
    np.testing.assert_array_equal(theirs.ids, plain.ids)  # type: ignore[union-attr]
    np.testing.assert_array_equal(theirs.answer, plain.answer)  # type: ignore[union-attr]


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    with pytest.raises(UserError, match="its tokenizer has 258 ids and the model 96"):
        check_vocabulary(ByteTokenizer(), LLAMA, "there")
