"""The model card of an exported stage, written from manifests alone: what it was made from, how, and how it measures.

Nothing in it is judged: figures stand as the stages wrote them, and what no manifest says is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ringworld.data.files import exists, join
from ringworld.generate.checkpoint import made_from, read_manifest, run_of
from ringworld.huggingface.tokenizer import Written
from ringworld.huggingface.vision import VISION, Codes
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.llama import count_parameters
from ringworld.strict import from_mapping

_FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags: [long-context, ringworld]
---"""


@dataclass(frozen=True, eq=False)
class Card:
    """What a card is written from. place: the stage's folder. bytes: of the weights of text."""

    place: str
    manifest: Mapping[str, Any]
    config: ModelConfig
    context: int
    dtype: str
    bytes: int
    tokenizer: Written
    codes: Codes | None
    notes: tuple[str, ...]


def card_of(card: Card) -> str:
    """Markdown."""
    name = card.manifest["stage"]
    run = run_of(card.place)
    parts = [_FRONT, f"# {name}", _what(card), _use(card), "## How it was trained", _trained(run, card.manifest)]
    parts += ["## What it was trained on", _data(run, card.manifest)]
    if measured := _measured(run, card.manifest):
        parts += ["## How it measures", measured]
    if card.config.vision_vocabulary:
        parts += ["## Vision", _vision(card)]
    if card.notes:
        parts += ["## Take note", "\n".join(f"- {note}" for note in card.notes)]
    parts += ["## Where it comes from", _origin(card.manifest)]
    return "\n\n".join(parts) + "\n"


def _what(card: Card) -> str:
    config = card.config
    heads = f"{config.num_heads} heads"
    if config.num_kv_heads != config.num_heads:
        heads += f" ({config.num_kv_heads} of keys and values)"
    sizes = f"{config.num_layers} layers of {config.embed_dim}, {heads} of {config.head_dim}"
    tied = "one table for embedding and head" if config.tied_embeddings else "embedding and head apart"
    return (
        f"A language model of {count_parameters(config):,} parameters for {card.context:,} tokens of context: {sizes}, "
        f"feed-forward {config.mlp_dim}, {config.vocabulary:,} text ids, {tied}. Positions: {_positions(config.rope)}. "
        f"Weights are {card.dtype}, {card.bytes:,} bytes."
    )


def _positions(rope: RopeConfig) -> str:
    if rope.scaling == "none":
        return f"RoPE, theta {rope.theta:,.0f}"
    first = f" of {rope.original_length:,} tokens" if rope.original_length else ""
    return f"RoPE, theta {rope.theta:,.0f}, scaling {rope.scaling} by {rope.factor:g}{first}"


def _use(card: Card) -> str:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    ]
    if card.tokenizer.template:
        lines.append('prompt = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], tokenize=False)')
    return "\n".join(["```python", *lines, "```"])


def _trained(run: str, manifest: Mapping[str, Any]) -> str:
    """A row for every training stage, the first first."""
    rows = [
        "| stage | sequence | positions | steps | tokens | learned from | last loss |",
        "|---|--:|---|--:|--:|---|--:|",
    ]
    chain = list(_chain(run, manifest))[::-1]
    for stage in chain:
        recipe, values = stage["recipe"], stage["values"]
        rope = from_mapping(RopeConfig, recipe["model"]["rope"])
        plan = stage["inputs"].get("plan", {}).get("stage", "")
        rows.append(
            f"| {stage['stage']} | {recipe['sequence']:,} | {_positions(rope)} | {recipe['steps']:,} | "
            f"{_number(values.get('tokens'))} | {plan} | {_figure(values.get('final_loss'))} |"
        )
    first = chain[0]["recipe"]
    began = "the weights of another model" if first.get("init") == "huggingface" else "random weights"
    return "\n".join(rows) + f"\n\nThe first stage began from {began}."


def _chain(run: str, manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The training stages that handed each other weights, the last first."""
    while True:
        yield manifest
        parent = manifest["inputs"].get("params")
        if parent is None:
            return
        manifest = read_manifest(join(run, parent["stage"]))


def _data(run: str, manifest: Mapping[str, Any]) -> str:
    told = []
    for _, found in sorted(made_from(run, manifest), key=lambda pair: pair[1]["stage"]):
        figures = [
            f"{_number(found['values'][name])} {name.replace('_', ' ')}"
            for name in ("documents", "conversations", "clips", "examples", "tokens", "answer_tokens")
            if isinstance(found["values"].get(name), int)
        ]
        if (
            found["kind"] in ("documents", "tokens", "media", "conversations", "vision-examples", "compose-qa")
            and figures
        ):
            told.append(f"- {found['stage']}: {', '.join(figures)}")
        if found["kind"] == "tokenizer":
            values = found["values"]
            size = _number(values.get("vocabulary_size"))
            told.append(
                f"- {found['stage']}: {values.get('family', 'unknown')}, {size} ids, {values.get('hash', '')[:12]}"
            )
    return "\n".join(told) or "No manifest says."


def _measured(run: str, manifest: Mapping[str, Any]) -> str:
    """A row for every training stage that was evaluated."""
    rows = []
    for stage in list(_chain(run, manifest))[::-1]:
        place = join(run, f"evaluate-{stage['stage']}")
        if not exists(join(place, "manifest.json")):
            continue
        found = read_manifest(place)
        if found["inputs"].get("after", {}).get("fingerprint") != stage.get("fingerprint"):
            continue  # of weights that were made again since
        values = found["values"]
        rows.append(
            f"| {stage['stage']} | {_number(values.get('sequence'))} | {_figure(values.get('loss_before'))} | "
            f"{_figure(values.get('loss_after'))} | {_share(values.get('needle_exact'))} | "
            f"{_share(values.get('needle_digits'))} |"
        )
    if not rows:
        return ""
    head = [
        "| stage | tokens | loss before | loss after | needles found | digits of needles |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    words = (
        "Loss is the mean of held-out documents, nats per token, before and after the stage; needles are numbers "
        "hidden in a text of up to so many tokens, answered greedily."
    )
    return "\n".join([*head, *rows]) + f"\n\n{words}"


def _vision(card: Card) -> str:
    config, codes = card.config, card.codes
    told = (
        f"`{VISION}` holds the rows of {config.vision_vocabulary:,} vision ids, {config.vocabulary:,} and up, which "
        f"the text model lacks: `vision_embedding.weight` and `vision_head.weight`, each [ids, {config.embed_dim}]."
    )
    if codes is None:
        return told + " Which VQGAN they are codes of is not known."
    return (
        f"{told} The first {codes.codebook:,} are codes of the VQGAN `{codes.vqgan}` (sha256); the next two end a "
        f"frame and a clip."
    )


def _origin(manifest: Mapping[str, Any]) -> str:
    origin = manifest.get("provenance") or {}
    versions = ", ".join(f"{name} {version}" for name, version in sorted((origin.get("versions") or {}).items()))
    told = [
        f"- fingerprint: `{manifest.get('fingerprint', 'unknown')}`",
        f"- code: `{origin.get('commit') or 'unknown'}`",
        f"- finished: {origin.get('finished', 'unknown')}",
        f"- with: {versions or 'unknown'}",
        "- license: none is stated; that of what it was trained on applies",
    ]
    return "\n".join(told)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "unknown"


def _share(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, (int, float)) else "unknown"
