"""A finished training stage as a folder that transformers loads.

    config.json  generation_config.json  model*.safetensors [and their index]  tokenizer files  README.md
    vision_tokens.safetensors  where the model sees

Written in an order in which a folder that was left half way is no model: config.json comes last. Weights pass a weight
at a time from the stage's artifact to the files; either may be on gs://.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ringworld.data.files import join, list_folder, write_bytes, write_json
from ringworld.errors import UserError
from ringworld.generate.checkpoint import made_from, open_checkpoint, read_manifest, run_of
from ringworld.huggingface.artifact import Artifact
from ringworld.huggingface.card import Card, card_of
from ringworld.huggingface.config_json import config_json
from ringworld.huggingface.families import CONFIG, GENERATION, family_of
from ringworld.huggingface.tokenizer import write_tokenizer
from ringworld.huggingface.vision import Codes, write_vision
from ringworld.huggingface.write import SHARD_BYTES, write_weights

_STORED = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Exported:
    """What was written. bytes: of the text model's weights. files: their names in the folder."""

    folder: str
    family: str
    bytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    place: str,
    folder: str,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the model of a stage's folder `place` (path or URL) into a folder that is empty or not there.

    dtype: float32, in which an import gives back every weight bit for bit, or bfloat16, half as large and rounded.
    UserError for another dtype, a folder that holds something, or a stage that made no weights.
    """
    if dtype not in _STORED:
        raise UserError(f"dtype={dtype!r}: allowed: {', '.join(_STORED)}")
    if shard_bytes < 1:
        raise UserError(f"shard_bytes={shard_bytes}: 1 or more")
    if held := list_folder(folder):
        raise UserError(f"{folder} is not empty ({held[0]} is there); give a new folder")
    manifest = read_manifest(place)
    checkpoint = open_checkpoint(place)
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    family = family_of(config)
    artifact = Artifact(checkpoint.weights, config)
    say(f"{family.model_type}, {config.num_layers} layers, {checkpoint.context} tokens, as {dtype}")
    size = write_weights(folder, config, artifact.read, _STORED[dtype], shard_bytes)
    codes = None
    if config.vision_vocabulary:
        codes = _codes(place, manifest)
        write_vision(folder, config, artifact.read, codes, _STORED[dtype])
    artifact.check()
    written = write_tokenizer(folder, tokenizer, checkpoint.context, _chats(place, manifest))
    ends = sorted(checkpoint.stop_ids)
    generation: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends,
        "pad_token_id": tokenizer.pad_id,
    }
    write_json(join(folder, GENERATION), {name: ids for name, ids in generation.items() if ids is not None})
    notes = (written.note,) if written.note else ()
    card = Card(place, manifest, config, checkpoint.context, dtype, size, written, codes, notes)
    write_bytes(join(folder, "README.md"), card_of(card).encode())
    write_json(join(folder, CONFIG), config_json(config, checkpoint.context, dtype, tokenizer.bos_id, ends))
    return Exported(folder, family.model_type, size, tuple(list_folder(folder)), notes)


def _chats(place: str, manifest: dict[str, Any]) -> bool:
    """Whether a stage, or one that it goes on from, learned from conversations."""
    found = made_from(run_of(place), manifest)
    return any(
        made["kind"] == "conversations"
        or (made["kind"] == "vision-examples" and made["recipe"].get("how", {}).get("form") == "chat")
        for _, made in found
    )


def _codes(place: str, manifest: dict[str, Any]) -> Codes | None:
    for _, made in made_from(run_of(place), manifest):
        if made["kind"] == "codes" and {"codebook", "vqgan"} <= made["values"].keys():
            return Codes(int(made["values"]["codebook"]), str(made["values"]["vqgan"]))
    return None
