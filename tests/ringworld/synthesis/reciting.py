"""A Hugging Face folder with a real model that knows one sentence: whatever it is asked, it recites that and stops.

Its weights are made by hand: attention and feed-forward add nothing, and the head leads from each word to the next.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as Joined
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace

_UNKNOWN, _END = "<unk>", "</s>"
_DIM, _HEADS, _LAYERS = 32, 4, 2


def write_reciter(folder: Path, sentence: str, context: int = 2048) -> Path:
    """sentence: at most 30 words between single spaces, all different."""
    words = sentence.split(" ")
    assert len(set(words)) == len(words) <= _DIM - 2
    folder.mkdir(parents=True)
    names = [_UNKNOWN, _END, *(f"\u2581{word}" for word in words)]
    _write_tokenizer(folder, names)
    following = np.zeros((_DIM, _DIM), np.float32)
    for at, after in zip([0, *range(2, len(names))], [*range(2, len(names)), 1], strict=True):
        following[after, at] = 20
    weights: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": np.eye(_DIM, dtype=np.float32),
        "model.norm.weight": np.ones(_DIM, np.float32),
        "lm_head.weight": following,
    }
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}."
        square = np.zeros((_DIM, _DIM), np.float32)
        for name in "qkvo":
            weights[f"{at}self_attn.{name}_proj.weight"] = square.copy()
        for name in ("gate", "up", "down"):
            weights[f"{at}mlp.{name}_proj.weight"] = square.copy()
        for name in ("input", "post_attention"):
            weights[f"{at}{name}_layernorm.weight"] = np.ones(_DIM, np.float32)
    save_file(weights, folder / "model.safetensors")
    stated = {
        "model_type": "llama", "vocab_size": _DIM, "num_hidden_layers": _LAYERS, "hidden_size": _DIM,
        "num_attention_heads": _HEADS, "num_key_value_heads": _HEADS, "intermediate_size": _DIM, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "max_position_embeddings": context, "eos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def _write_tokenizer(folder: Path, names: list[str]) -> None:
    model = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token=_UNKNOWN))
    model.pre_tokenizer = Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    model.decoder = Joined()  # pyright: ignore[reportAttributeAccessIssue]
    model.add_special_tokens([_END])
    model.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END, "unk_token": _UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
