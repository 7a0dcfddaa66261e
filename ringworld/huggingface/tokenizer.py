"""A tokenizer of ours as the files that transformers reads: tokenizer.json, tokenizer_config.json, the chat template.

- The ids of a text are those that the model was trained on, so the exported tokenizer puts nothing before a text, even
  where the one it was made from does: stages' examples begin with their first token.
- One difference stays, and is transformers' own: a special token that a text spells out gets its id there, and the ids
  of its letters here.
- A SentencePiece model is converted by transformers and tried on texts; where the ids differ (a model with its own
  normalization), tokenizer.model is written alone, and `Written.note` says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.data.files import join, write_bytes, write_json
from ringworld.data.templates import LWM_SYSTEM, source_of
from ringworld.data.tokenizers import (
    BpeTokenizer,
    ByteTokenizer,
    FastTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    from_huggingface,
)
from ringworld.errors import UserError
from ringworld.model.config import ModelConfig

# LWM's plain template in Jinja: what `ringworld.data.templates.PlainTemplate` writes.
PLAIN_JINJA = (
    "{%- set ns = namespace(opening='' if messages and messages[0]['role'] == 'system' else '" + LWM_SYSTEM + " ') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.opening = message['content'] + ' ' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- ns.opening + 'USER: ' + message['content'] + ' ASSISTANT:' -}}{%- set ns.opening = '' -%}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
_PROBES = (
    "The quick brown fox", " begins with a space", "two  spaces and\ta tab", "a line\n\nand another\r\n",
    "naïve café, ﬁne", "1234567890 + 42 = 3.14", "中文 and 日本語", "🙂 U+1F642", "def f(x):\n    return x", "",
)  # fmt: skip

# SentencePiece puts a space before every text; what transformers converts to, only before one that begins with none.
_ALWAYS_A_SPACE: Mapping[str, Any] = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
}


@dataclass(frozen=True)
class Written:
    """What was written. template: Jinja, None where there is none. note: what a reader must know; empty: nothing."""

    template: str | None
    note: str = ""


def write_tokenizer(folder: str, tokenizer: Tokenizer, context: int, chats: bool) -> Written:
    """Write a tokenizer's files. context: tokens that the model is meant for. chats: it was trained on conversations,
    so that LWM's template is written where the tokenizer brings none. UserError for a family that cannot be written.
    """
    template = source_of(tokenizer) or (PLAIN_JINJA if chats else None)
    note = ""
    if isinstance(tokenizer, ByteTokenizer):
        model = _with_specials(json.loads(_bytes_model().to_str()), {"<s>": 256, "</s>": 257})
    elif isinstance(tokenizer, BpeTokenizer):
        own = json.loads(tokenizer.files["tokenizer.json"])
        model = _with_specials(own, {"<s>": tokenizer.bos_id, "</s>": tokenizer.eos_id})
    elif isinstance(tokenizer, FastTokenizer):
        model = json.loads(tokenizer.files["tokenizer.json"])
    elif isinstance(tokenizer, SentencePieceTokenizer):
        write_bytes(join(folder, "tokenizer.model"), tokenizer.files["tokenizer.model"])
        model = _converted(tokenizer)
        if model is None:
            note = (
                "tokenizer.json could not be written: transformers gives texts other ids than this SentencePiece "
                "model; encode with sentencepiece and tokenizer.model"
            )
    else:
        raise UserError(f"a tokenizer of family {tokenizer.family} cannot be written as a Hugging Face tokenizer")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if model is not None:
        model["post_processor"] = None
        tokens = _tokens(model)
        for name, number in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id)):
            if number is not None:
                config[f"{name}_token"] = tokens[number]
        write_bytes(join(folder, "tokenizer.json"), json.dumps(model, ensure_ascii=False).encode())
    if template is not None:
        config["chat_template"] = template
    write_json(join(folder, "tokenizer_config.json"), config)
    return Written(template, note)


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, place: str) -> None:
    """UserError where a tokenizer has ids that the model has no row for."""
    if tokenizer.vocabulary_size > config.vocabulary:
        raise UserError(
            f"{place}: its tokenizer has {tokenizer.vocabulary_size} ids and the model {config.vocabulary}; "
            f"give the tokenizer that it was trained with"
        )


def _bytes_model() -> Any:
    """The tokenizers model whose ids are the bytes of UTF-8."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers

    model = Model(models.BPE({character: byte for byte, character in enumerate(_byte_characters())}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    return model


def _byte_characters() -> list[str]:
    """The character that byte-level models write each byte as (Radford et al. 2019): its own where it can be seen, the
    others from U+0100 on, in order."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _with_specials(model: dict[str, Any], specials: Mapping[str, int | None]) -> dict[str, Any]:
    """The model with special tokens after its own. A name that is taken gets underlines, as <s_>."""
    taken = set(_tokens(model).values())
    added = []
    for name, number in specials.items():
        while name in taken:
            name = name[:-1] + "_>"
        added.append(
            {
                "id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
        )  # fmt: skip
    return {**model, "added_tokens": [*model.get("added_tokens", []), *added]}


def _tokens(model: Mapping[str, Any]) -> dict[int, str]:
    """Every token of a model in the JSON form of `tokenizers`, by id."""
    vocabulary = model["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [token, score]
        found = {number: token for number, (token, _) in enumerate(vocabulary)}
    else:
        found = {number: token for token, number in vocabulary.items()}
    return found | {added["id"]: added["content"] for added in model.get("added_tokens", [])}


def _converted(tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    """A SentencePiece model in the JSON form of `tokenizers`; None where that gives a text other ids."""
    from sentencepiece import SentencePieceProcessor

    pieces: Any = SentencePieceProcessor(model_proto=tokenizer.files["tokenizer.model"])
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": pieces.unk_id()}
    config = {f"{name}_token": pieces.id_to_piece(number) for name, number in named.items() if number is not None}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.model").write_bytes(tokenizer.files["tokenizer.model"])
        Path(folder, "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizer"}))
        try:
            fast = from_huggingface(folder)
        except UserError:
            return None
    model = json.loads(fast.files["tokenizer.json"]) | _ALWAYS_A_SPACE
    fast = replace(fast, files={"tokenizer.json": json.dumps(model).encode()})
    same = all(np.array_equal(a, b) for a, b in zip(*(t.encode_batch(_PROBES) for t in (tokenizer, fast)), strict=True))
    return model if same else None
