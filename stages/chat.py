"""What chat stages train on, as a part of the graph: corpora of files, and those that the documents are made into.

    documents, tokens -> talk ----------------------------------------> conversations -> pack-text-chat-1k -> ...
                      -> questions -> examples-1k, examples-8k, ... -->

- The corpus `chat` is the files of sources.chat; without any, the documents' own docstrings and dialogue (`talk`).
- The corpus `qa` is the files of sources.qa; without any, questions that are written about chunks of the documents
  (`questions`), which become examples of each chat stage's length: a corpus `qa-8k` for a stage of 8K tokens.
- One stage holds the conversations of all corpora. What it waits for, no text stage waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from infra.placement import Placement
from infra.stage import Stage
from ringworld.errors import UserError
from ringworld.synthesis.exchanges import TalkRules
from stages import compose_qa, conversations, synthesize_qa, talk
from stages.compose_qa import ComposeRecipe
from stages.conversations import ConversationsRecipe
from stages.curriculum import Curriculum
from stages.site import Site
from stages.talk import TalkRecipe
from stages.training import CHAT, QA, Training, length_label

CONVERSATIONS = "conversations"
_READS = ("documents", "tokens", "tokenizer", "deduplicate", "decontaminate")
# These ask somebody else, or nobody: they need a processor, whatever trains.
_WITHOUT_A_MODEL_HERE = ("extractive", "openai")


def corpora_of(row: Training, curriculum: Curriculum) -> dict[str, float]:
    """The share of each corpus that a chat stage draws from, by the name that the corpus has in the store."""
    return {
        f"{QA}-{length_label(row.sequence)}" if name == QA and _writes_questions(curriculum) else name: share
        for name, share in row.mixture.items()
        if share > 0
    }


def conversation_stages(curriculum: Curriculum, site: Site, made: Mapping[str, Stage]) -> list[Stage]:
    """The stages that make the conversations of all chat stages, the last of them `conversations`."""
    chats = [row for row in curriculum.stages.values() if row.data == "chat"]
    drawn = {name for row in chats for name, share in row.mixture.items() if share > 0}
    before: list[Stage] = []
    ports = {"tokenizer": made["tokenizer"]}
    # A corpus that nothing makes needs files: the stage says so when it runs, and a plan can be made without any.
    sources = {name: getattr(curriculum.sources, name) for name in sorted(drawn)}
    if CHAT in drawn and not sources[CHAT] and curriculum.talk is not None:
        del sources[CHAT]
        ports[CHAT] = _talk(curriculum.talk, made)
        before.append(ports[CHAT])
    if _writes_questions(curriculum) and QA in drawn:
        del sources[QA]
        questions = _questions(curriculum, site, made)
        before.append(questions)
        for length in sorted({row.sequence for row in chats if row.mixture.get(QA, 0) > 0}):
            examples = _examples(curriculum, made, questions, length)
            before.append(examples)
            ports[f"{QA}-{length_label(length)}"] = examples
    recipe = ConversationsRecipe(
        sources=sources,
        held_out=curriculum.held_out,
        seed=curriculum.seed,
        max_document_bytes=curriculum.sources.max_document_bytes,
    )
    return [*before, Stage(CONVERSATIONS, recipe, conversations.run, ports, Placement())]


def _writes_questions(curriculum: Curriculum) -> bool:
    return curriculum.questions is not None and not curriculum.sources.qa


def _talk(rules: TalkRules, made: Mapping[str, Stage]) -> Stage:
    inputs = {name: made[name] for name in _READS if name in made and name != "tokenizer"}
    return Stage("talk", TalkRecipe(rules), talk.run, inputs, Placement())


def _questions(curriculum: Curriculum, site: Site, made: Mapping[str, Stage]) -> Stage:
    asked = curriculum.questions
    assert asked is not None
    # Seeds of their own stay.
    prompt = replace(asked.prompt, seed=asked.prompt.seed or curriculum.seed)
    recipe = replace(asked, seed=asked.seed or curriculum.seed, prompt=prompt)
    inputs = {name: made[name] for name in _READS if name in made}
    if writer := curriculum.questions_by:
        if recipe.provider != "checkpoint" or writer not in made or writer not in curriculum.stages:
            raise UserError(
                f"questions_by={writer}: a training stage above the first chat stage, and questions.provider=checkpoint"
            )
        inputs["model"] = made[writer]
    place = site.place("questions", site.questions)
    if recipe.provider in _WITHOUT_A_MODEL_HERE:
        place = Placement(options=place.options)
    return Stage("questions", recipe, synthesize_qa.run, inputs, place, code_version=synthesize_qa.CODE_VERSION)


def _examples(curriculum: Curriculum, made: Mapping[str, Stage], questions: Stage, length: int) -> Stage:
    how = curriculum.examples
    recipe = ComposeRecipe(length, how.pairs_per_example, how.least_pairs, how.distractors, curriculum.seed)
    inputs = {name: made[name] for name in _READS if name in made and name != "tokens"}
    name = f"examples-{length_label(length)}"
    return Stage(name, recipe, compose_qa.run, {**inputs, "questions": questions}, Placement())
