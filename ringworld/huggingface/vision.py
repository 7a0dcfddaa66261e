"""The weights of vision tokens, in a file of their own beside the text model's: transformers loads the folder as a text
model and never looks at it.

    vision_tokens.safetensors
      vision_embedding.weight    [vision vocabulary, embed]
      vision_head.weight         [vision vocabulary, embed]
      metadata, texts: schema "1"; offset, the first vision id, which is the text model's vocab_size; vocabulary, the
      rows; and where they are known codebook, eof, eov (ids; codes are offset .. offset + codebook - 1) and
      vqgan, the sha256 of the VQGAN whose codes they are.

A row past eov is spare. What goes into the first layer for id n >= offset is row n - offset of the embedding; the
logits of vision ids are the head's rows times the last hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ringworld.data.files import exists, join
from ringworld.errors import UserError
from ringworld.huggingface.tensors import File, Planned, Tensor, read_header, write_file
from ringworld.model.config import ModelConfig
from ringworld.vision.stream import VisionIds

VISION = "vision_tokens.safetensors"
_EMBEDDING, _HEAD = "vision_embedding.weight", "vision_head.weight"
_SCHEMA = "1"


@dataclass(frozen=True)
class Codes:
    """What is known of the codes that vision ids stand for. vqgan: sha256 of the VQGAN."""

    codebook: int
    vqgan: str


def vision_vocabulary(folder: str) -> int:
    """Rows of vision tokens that a folder holds; 0: none."""
    if not exists(join(folder, VISION)):
        return 0
    return _tensors(folder)["embedding"].shape[0]


def vision_tensors(folder: str, config: ModelConfig) -> Mapping[str, Tensor]:
    """`embedding` and `head` as they lie in a folder's file. UserError where they are of another model."""
    found = _tensors(folder)
    for name, tensor in found.items():
        if tensor.shape != (config.vision_vocabulary, config.embed_dim):
            raise UserError(
                f"{folder}/{VISION}: {name} has shape {list(tensor.shape)}, the model's is "
                f"{[config.vision_vocabulary, config.embed_dim]}"
            )
    offset = _header(folder).metadata.get("offset")
    if offset != str(config.vocabulary):
        raise UserError(f"{folder}/{VISION}: vision ids begin at {offset}, the model's text has {config.vocabulary}")
    return found


def _tensors(folder: str) -> dict[str, Tensor]:
    found = _header(folder).tensors
    if missing := {_EMBEDDING, _HEAD} - set(found):
        raise UserError(f"{folder}/{VISION} lacks {', '.join(sorted(missing))}; export the model again")
    return {"embedding": found[_EMBEDDING], "head": found[_HEAD]}


def _header(folder: str) -> File:
    header = read_header(join(folder, VISION))
    if header.metadata.get("schema") != _SCHEMA:
        raise UserError(f"{folder}/{VISION}: schema {header.metadata.get('schema')!r}, not {_SCHEMA}")
    return header


def write_vision(
    folder: str, config: ModelConfig, read: Callable[[str], np.ndarray], codes: Codes | None, dtype: str
) -> None:
    """Write the file. read: our weight by its name, `vision.embedding` [rows, embed] or `vision.head` [embed, rows]."""
    metadata = {"schema": _SCHEMA, "offset": str(config.vocabulary), "vocabulary": str(config.vision_vocabulary)}
    if codes is not None:
        ids = VisionIds(config.vocabulary, codes.codebook)
        metadata |= {"codebook": str(codes.codebook), "eof": str(ids.eof), "eov": str(ids.eov), "vqgan": codes.vqgan}
    shape = (config.vision_vocabulary, config.embed_dim)
    planned = [Planned(_EMBEDDING, shape, dtype), Planned(_HEAD, shape, dtype)]
    arrays = (read(name).T if name.endswith("head") else read(name) for name in ("vision.embedding", "vision.head"))
    write_file(join(folder, VISION), planned, arrays, metadata)
