"""What a folder holds that a model can be run from: a finished stage of a run, or a Hugging Face model.

A stage's folder has a manifest.json, which names its recipe, its newest attempt and the stages that it was made from;
its tokenizer is found by following these. A Hugging Face folder has config.json, safetensors and a tokenizer. Places
are paths or URLs, as in `ringworld.data.files`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ringworld.data.files import join, list_files, read_bytes, read_json
from ringworld.data.templates import source_of, template_of
from ringworld.data.tokenizers import Tokenizer, from_huggingface, load_tokenizer
from ringworld.errors import UserError
from ringworld.huggingface.config_json import read_stated
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Rope, make_rope
from ringworld.strict import from_mapping

_SCHEMA = 1
_TRAINED_BY = "train"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that can be run.

    name: the folder's last part. weights: what `ringworld.train.weights.load_weights` takes. context: tokens that it
    was trained at. dtype: of its products. begin: the id that its prompts begin with, where it was trained so.
    stop_ids: any of them ends an answer. template: the Jinja chat template that came with the tokenizer, if any.
    """

    name: str
    config: ModelConfig
    rope: Rope
    weights: str
    context: int
    dtype: str
    tokenizer: Tokenizer
    begin: int | None
    stop_ids: frozenset[int]
    template: str | None


def open_checkpoint(place: str, tokenizer: str | None = None) -> Checkpoint:
    """Read what a folder says of its model; no weights yet. `tokenizer`: a folder to take instead of the model's own.

    UserError where it is neither kind of folder, or lacks a part.
    """
    place = place.rstrip("/")
    files = {name for name in _names(place) if "/" not in name}
    if "manifest.json" in files:
        return _stage(place, tokenizer)
    if "config.json" in files:
        return _huggingface(place, tokenizer)
    raise UserError(
        f"{place}: neither manifest.json (a finished stage of a run, as in runs/tiny/text-8k) nor config.json "
        f"(a Hugging Face folder) is there"
    )


def open_tokenizer(place: str) -> Tokenizer:
    """A tokenizer stage's artifact, or a Hugging Face folder's tokenizer."""
    described = read_json(join(place, "tokenizer.json")) if "tokenizer.json" in _names(place) else {}
    if isinstance(described, Mapping) and "family" in described:
        return load_tokenizer(place)
    return from_huggingface(place)


def _names(place: str) -> list[str]:
    try:
        return list_files(place)
    except (OSError, ValueError) as wrong:
        raise UserError(f"{place} cannot be read: {wrong}") from wrong


def _stage(place: str, tokenizer: str | None) -> Checkpoint:
    manifest = read_manifest(place)
    if manifest["kind"] != _TRAINED_BY:
        raise UserError(f"{place} is a stage of kind {manifest['kind']}; only training stages make weights")
    recipe = manifest["recipe"]
    config = from_mapping(ModelConfig, recipe["model"], at=f"{place}/manifest.json: recipe.model")
    chosen = open_tokenizer(tokenizer or _tokenizer_of(run_of(place), manifest))
    _check_vocabulary(chosen, config, place)
    return Checkpoint(
        name=place.rpartition("/")[2],
        config=config,
        rope=make_rope(config.rope, config.head_dim),
        weights=artifact(place, manifest, "params"),
        context=int(recipe["sequence"]),
        dtype=recipe["dtype"],
        tokenizer=chosen,
        begin=None,  # stages' examples begin with their first token
        stop_ids=_ends_of(chosen),
        template=source_of(chosen),
    )


def read_manifest(place: str) -> dict[str, Any]:
    """What a stage's folder says of itself: kind, recipe, inputs, attempt. UserError where it is of another version."""
    where = join(place, "manifest.json")
    manifest = read_json(where)
    needed = {"kind", "recipe", "inputs", "attempt"}
    if not isinstance(manifest, dict) or manifest.get("schema") != _SCHEMA or not needed <= set(manifest):
        raise UserError(f"{where} is not a manifest of schema {_SCHEMA}; finish the stage with this version")
    return manifest


def made_from(run: str, manifest: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder, manifest) of the stages of a run that a stage's inputs lead to, the nearest first."""
    waiting, seen = deque(ref["stage"] for ref in manifest["inputs"].values()), set()
    while waiting:
        stage = waiting.popleft()
        if stage not in seen:
            seen.add(stage)
            found = read_manifest(join(run, stage))
            yield join(run, stage), found
            waiting.extend(ref["stage"] for ref in found["inputs"].values())


def tokens_of(place: str) -> str | None:
    """The token store that a stage of a run was trained on; None for a folder that is no stage."""
    place = place.rstrip("/")
    if "manifest.json" not in _names(place):
        return None
    for stage, manifest in made_from(run_of(place), read_manifest(place)):
        if manifest["kind"] == "tokens":
            return artifact(stage, manifest, "tokens")
    return None


def artifact(place: str, manifest: Mapping[str, Any], name: str) -> str:
    """Where an output of a stage lies."""
    return join(place, f"attempt-{manifest['attempt']}", name)


def run_of(place: str) -> str:
    """The folder of the run that a stage's folder is in."""
    return place.rstrip("/").rpartition("/")[0] or "."


def _tokenizer_of(run: str, manifest: Mapping[str, Any]) -> str:
    """The artifact of the tokenizer stage that a stage's inputs lead to."""
    seen = []
    for stage, found in made_from(run, manifest):
        if found["kind"] == "tokenizer":
            return artifact(stage, found, "tokenizer")
        seen.append(stage.rpartition("/")[2])
    raise UserError(f"no tokenizer stage among what {run} was made from ({', '.join(sorted(seen))}); give --tokenizer")


def _huggingface(place: str, tokenizer: str | None) -> Checkpoint:
    stated = read_stated(place)
    config, chosen = stated.model, open_tokenizer(tokenizer or place)
    _check_vocabulary(chosen, config, place)
    return Checkpoint(
        name=place.rpartition("/")[2],
        config=config,
        rope=make_rope(config.rope, config.head_dim),
        weights=place,
        context=stated.context if stated.window is None else min(stated.context, stated.window),
        dtype=stated.dtype,
        tokenizer=chosen,
        begin=_begin_of(chosen),
        stop_ids=_stop_ids(place, stated.eos_ids, chosen),
        template=source_of(chosen),
    )


def _check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, place: str) -> None:
    if tokenizer.vocabulary_size > config.vocabulary:
        raise UserError(
            f"{place}: its tokenizer has {tokenizer.vocabulary_size} ids and the model {config.vocabulary}; "
            f"give the tokenizer that it was trained with as --tokenizer"
        )


def _stop_ids(place: str, stated: tuple[int, ...], tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: those of generation_config.json, else of config.json, and the tokenizer's."""
    told: Any = None
    if "generation_config.json" in _names(place):
        told = json.loads(read_bytes(join(place, "generation_config.json"))).get("eos_token_id")
    ids = told if isinstance(told, list) else stated if told is None else [told]
    return _ends_of(tokenizer) | {int(token) for token in ids}


def _begin_of(tokenizer: Tokenizer) -> int | None:
    """The beginning's id, where the tokenizer's own rule puts it before a text."""
    if tokenizer.bos_id is None or "tokenizer.json" not in tokenizer.files:
        return None
    from tokenizers import Tokenizer as Model

    ids = Model.from_buffer(tokenizer.files["tokenizer.json"]).encode("a", add_special_tokens=True).ids
    return tokenizer.bos_id if ids[:1] == [tokenizer.bos_id] else None


def _ends_of(tokenizer: Tokenizer) -> frozenset[int]:
    """The end of text, and what the tokenizer's chat template ends an answer with."""
    try:
        return template_of(tokenizer).ends() | {tokenizer.eos_id}
    except UserError:  # a template that cannot be rendered is told of when it is asked for
        return frozenset({tokenizer.eos_id})
