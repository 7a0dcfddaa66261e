"""The graph of stages that a curriculum stands for, on a site.

    documents -> deduplicate -> decontaminate: which documents to drop and what to cut, for tokens
    documents -> tokenizer -> tokens -> pack-text-512 -> text-512 -> evaluate-text-512
                                     -> pack-text-1k  -> text-1k  -> ...      (text-1k also starts from text-512's
                                     weights)
                              tokens -> assemble: chains of related documents, for the packs that want them
                              tokens -> recall-text-512 -> pack-text-512, for data: recall: documents of its own
    tokens -> talk, questions -> examples -> conversations -> pack-text-chat-1k -> text-chat-1k -> ...
                                                                    (a branch, from text-1k's weights; see stages.chat)
    media -> vqgan -> codes -> examples-vision-1k -> pack-vision-1k -> vision-1k -> ...
                                                             (from the weights of a text stage; see stages.vision)

Each training stage gets a packing plan and an evaluation of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from infra.placement import Placement
from infra.stage import Stage
from ringworld.errors import UserError
from ringworld.evaluate.recipe import ChatConfig, EvaluateRecipe, NeedleConfig
from ringworld.mesh import parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.sharding import check, check_memory
from ringworld.strict import from_mapping
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
from ringworld.train.shapes import check_shapes
from stages import (
    assemble,
    decontaminate,
    deduplicate,
    documents,
    evaluate,
    pack,
    pack_whole,
    recall,
    tokenizer,
    tokens,
    train,
    vision,
)
from stages.chat import CONVERSATIONS, conversation_stages, corpora_of
from stages.curriculum import Curriculum, OptimizerDefaults
from stages.documents import DocumentsRecipe
from stages.pack_whole import PackWholeRecipe
from stages.recall import RecallRecipe
from stages.site import Site
from stages.tokenizer import TokenizerRecipe
from stages.tokens import TokensRecipe
from stages.training import CONVERSES, SEES, Training


def build(curriculum: Curriculum, site: Site) -> list[Stage]:
    """The graph, in an order in which every stage comes after its inputs."""
    made = {stage.name: stage for stage in _data_stages(curriculum)}
    for name, row in curriculum.stages.items():
        if row.data == "chat" and CONVERSATIONS not in made:
            made |= {stage.name: stage for stage in conversation_stages(curriculum, site, made)}
        if row.data in SEES:
            if vision.CODES not in made:
                made |= {stage.name: stage for stage in vision.clip_stages(curriculum, site)}
            made[f"examples-{name}"] = vision.examples(name, curriculum, made)
        if row.data == "recall":
            made[f"recall-{name}"] = _recall(name, curriculum, made)
        made |= {stage.name: stage for stage in _training_stages(name, curriculum, site, made)}
    return list(made.values())


def check_mesh(
    recipe: TrainRecipe, placement: Placement, stage: str, devices: int | None, row_lengths: set[int]
) -> None:
    """UserError where a training stage's mesh cannot hold its model or batch: now, not on the cluster."""
    if devices is None:
        return
    try:
        options = from_mapping(TrainOptions, dict(placement.options), at="options")
        sizes = parse_mesh(placement.mesh).resolved(devices).sizes()
        check(recipe.model, sizes)
        check_memory(recipe.model, options.memory, sizes)
        check_shapes(recipe, options, sizes, row_lengths)
    except UserError as error:
        raise UserError(f"placement of {stage}: {error}") from None


def _data_stages(curriculum: Curriculum) -> list[Stage]:
    sources, chosen = curriculum.sources, curriculum.tokenizer
    here = Placement()  # Ray Data spreads these by itself
    first = Stage(
        "documents",
        DocumentsRecipe(
            sources=sources.text,
            domains=sources.domains,
            cleaning=sources.cleaning,
            field=sources.field,
            column=sources.column,
            installed_bytes=sources.installed_bytes,
            max_document_bytes=sources.max_document_bytes,
            minimum_bytes=sources.minimum_bytes,
        ),
        documents.run,
        {},
        here,
    )
    second = Stage(
        "tokenizer",
        TokenizerRecipe(chosen.kind, chosen.vocabulary, chosen.path, chosen.sample_bytes, chosen.template),
        tokenizer.run,
        {"documents": first},
        here,
    )
    decisions = _decisions(curriculum, first)
    lengths = tuple(sorted({row.sequence for row in curriculum.stages.values() if row.data in ("text", "recall")}))
    third = Stage(
        "tokens",
        TokensRecipe(held_out=curriculum.held_out, seed=curriculum.seed, buckets=lengths),
        tokens.run,
        {"documents": first, "tokenizer": second, **decisions},
        here,
    )
    return [
        first,
        *decisions.values(),
        second,
        third,
        *_assembled(curriculum, first, third),
    ]


def _decisions(curriculum: Curriculum, documents: Stage) -> dict[str, Stage]:
    """The stages that decide what of the documents is dropped or cut, as the ports of those that heed them."""
    made: dict[str, Stage] = {}
    here = Placement()
    if curriculum.deduplicate is not None:
        recipe = curriculum.deduplicate
        made["deduplicate"] = Stage("deduplicate", recipe, deduplicate.run, {"documents": documents}, here)
    if curriculum.decontaminate is not None:
        recipe, inputs = curriculum.decontaminate, {"documents": documents, **made}
        made["decontaminate"] = Stage("decontaminate", recipe, decontaminate.run, inputs, here)
    return made


def _assembled(curriculum: Curriculum, documents: Stage, tokens: Stage) -> list[Stage]:
    """The chains of related documents, where a stage wants them."""
    if all(row.documents == "natural" for row in curriculum.stages.values()):
        return []
    inputs = {"documents": documents, "tokens": tokens}
    return [Stage("assemble", curriculum.assemble, assemble.run, inputs, Placement())]


def _training_stages(name: str, curriculum: Curriculum, site: Site, made: Mapping[str, Stage]) -> list[Stage]:
    row = curriculum.stages[name]
    parent = made.get(row.after)
    packed = _packing(name, curriculum, made)
    recipe, place = _training_recipe(name, curriculum, parent), site.place(name, site.train)
    stores = {port: packed.inputs[port] for port in ("tokens", "vision") if port in packed.inputs}
    if "tokens" not in stores:
        stores = {"tokens": stores["vision"]}
    for width in place.widths():
        check_mesh(recipe, width, name, site.devices(width), row.row_lengths)
    training = Stage(
        name,
        recipe,
        train.run,
        {**stores, "plan": packed, **({"params": parent} if parent else {})},
        place,
        code_version=train.CODE_VERSION,
    )
    return [packed, training, _evaluation(name, curriculum, site, made, training, parent)]


def _training_recipe(name: str, curriculum: Curriculum, parent: Stage | None) -> TrainRecipe:
    row = curriculum.stages[name]
    from_base = parent is None and curriculum.base != "scratch"
    return TrainRecipe(
        model=_model(name, curriculum),
        sequence=row.sequence,
        batch_tokens=row.batch_tokens,
        steps=row.steps,
        optimizer=_optimizer(curriculum.optimizer, row),
        seed=curriculum.seed,
        dtype=curriculum.dtype,
        init="huggingface" if from_base else "params" if parent else "scratch",
        init_folder=curriculum.base if from_base else "",
    )


def _packing(name: str, curriculum: Curriculum, made: Mapping[str, Stage]) -> Stage:
    row = curriculum.stages[name]
    if row.data in SEES:
        return vision.packing(name, curriculum, made)
    if row.data in ("chat", "recall"):
        chat = row.data == "chat"
        mixture, store = (corpora_of(row, curriculum), CONVERSATIONS) if chat else (row.mixture, f"recall-{name}")
        recipe = PackWholeRecipe(row.sequence, mixture, row.weigh_by, row.window)
        return Stage(f"pack-{name}", recipe, pack_whole.run, {"tokens": made[store]}, Placement())
    inputs = {"tokens": made["tokens"], "tokenizer": made["tokenizer"]}
    if row.documents == "assembled":
        inputs["chains"] = made["assemble"]
    return Stage(f"pack-{name}", row.packing(curriculum.seed), pack.run, inputs, Placement())


def _recall(name: str, curriculum: Curriculum, made: Mapping[str, Stage]) -> Stage:
    """The documents of one training stage: a row each, for every row that its steps read."""
    row = curriculum.stages[name]
    documents_of = -(-row.steps * row.batch_tokens // row.sequence)
    recipe = RecallRecipe(row.sequence, documents_of, row.mixture, row.counted, curriculum.seed)
    ports = {"tokens": made["tokens"], "tokenizer": made["tokenizer"]}
    return Stage(f"recall-{name}", recipe, recall.run, ports, Placement())


def _evaluation(
    name: str, curriculum: Curriculum, site: Site, made: Mapping[str, Stage], training: Stage, parent: Stage | None
) -> Stage:
    row, asked = curriculum.stages[name], curriculum.evaluate
    before = curriculum.stages.get(row.after)
    if before is not None:
        past, before_rope = before.sequence, _rope(before)
    elif curriculum.base != "scratch":
        past, before_rope = curriculum.base_sequence, RopeConfig(theta=curriculum.base_theta)
    else:
        past, before_rope = 0, None
    place = site.place(name, {})
    recipe = EvaluateRecipe(
        model=_model(name, curriculum),
        sequence=row.sequence,
        past=past if past < row.sequence else 0,
        rows=asked.rows,
        before_rope=before_rope,
        before_folder=curriculum.base if before is None and curriculum.base != "scratch" else "",
        needle=NeedleConfig(
            lengths=tuple(max(1, round(row.sequence * share)) for share in asked.needle_fractions),
            depths=asked.depths,
            rounds=asked.rounds,
        ),
        chat=ChatConfig(tuple(corpora_of(row, curriculum)), asked.conversations, asked.questions)
        if row.data == "chat"
        else None,
        vision=asked.vision if row.data in SEES else None,
        context=asked.context.at(row.sequence) if asked.context else None,
        tasks=asked.tasks.at(row.sequence, chat=row.data in CONVERSES) if asked.tasks else None,
        seed=curriculum.seed,
        dtype=curriculum.dtype,
    )
    inputs = {"tokens": made["tokens"], "tokenizer": made["tokenizer"], "after": training}
    if row.data == "chat":
        inputs[CONVERSATIONS] = made[CONVERSATIONS]
    if row.data in SEES:
        inputs |= {"vision": made[f"examples-{name}"]} | {port: made[port] for port in (vision.CODES, vision.VQGAN)}
    return Stage(
        f"evaluate-{name}",
        recipe,
        evaluate.run,
        {**inputs, **({"before": parent} if parent else {})},
        replace(place, options=dict(site.evaluate)),
        code_version=evaluate.CODE_VERSION,
    )


def _model(name: str, curriculum: Curriculum) -> ModelConfig:
    seen = curriculum.vision_vocabulary(name)
    return replace(curriculum.model, vision_vocabulary=seen, rope=_rope(curriculum.stages[name]))


def _rope(row: Training) -> RopeConfig:
    return row.rope or RopeConfig(theta=row.theta)


def _optimizer(shared: OptimizerDefaults, row: Training) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=row.learning_rate,
        schedule=row.schedule,
        warmup_steps=row.warmup_steps,
        minimum_rate=row.minimum_rate,
        beta1=shared.beta1,
        beta2=shared.beta2,
        epsilon=shared.epsilon,
        weight_decay=shared.weight_decay,
        clip_norm=shared.clip_norm,
    )
