"""Documents that questions can be asked about, as finished stages of a run, and the questions stage on them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra import runner
from infra.placement import Placement
from infra.runner import Outcome
from infra.stage import Artifact, Stage
from infra.storage import Store
from ringworld import errors
from ringworld.data.files import read_table
from ringworld.synthesis.verify import Rules
from stages import documents, synthesize_qa, tokenizer, tokens
from stages.documents import DocumentsRecipe
from stages.questions_plan import Choice
from stages.synthesize_qa import SynthesizeRecipe
from stages.tokenizer import TokenizerRecipe
from stages.tokens import TokensRecipe

PEOPLE = ["Ahab", "Ishmael", "Queequeg", "Starbuck", "Stubb", "Flask", "Tashtego", "Daggoo", "Bildad", "Peleg"]
PLACES = ["Nantucket", "Madagascar", "Valparaiso", "Sumatra", "Lisbon", "Boston", "Callao", "Java", "Tahiti", "Dover"]
THINGS = ["barrels of oil", "brass lamps", "old harpoons", "bolts of cloth", "casks of water", "silver coins"]
BOOKS = 8
CHUNK = Choice(chunk_tokens=400)  # of bytes


def book(seed: int, paragraphs: int = 12) -> str:
    """Paragraphs of about 300 letters, each with facts of its own."""
    rng = random.Random(seed)
    told = []
    for _ in range(paragraphs):
        who, other = rng.sample(PEOPLE, 2)
        told.append(
            f"In the year {rng.randint(1700, 1899)} the sailor {who} left {rng.choice(PLACES)} with "
            f"{rng.randint(11, 999)} {rng.choice(THINGS)}. Nobody on board had seen {other} since the storm near "
            f"{rng.choice(PLACES)}, and the mate paid {rng.randint(11, 999)} dollars for the news. The ship was bound "
            f"for {rng.choice(PLACES)} and arrived after {rng.randint(11, 99)} days."
        )
    return "\n\n".join(told)


class Run:
    """A run's folder in which everything before the questions is done."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.store = Store(str(folder), "run")
        books = folder / "books"
        if not books.exists():
            books.mkdir(parents=True)
            for number in range(BOOKS):
                (books / f"book{number}.txt").write_text(book(number))
        first = Stage("documents", DocumentsRecipe(sources=(str(books),)), documents.run, {}, Placement())
        words = Stage("tokenizer", TokenizerRecipe("bytes"), tokenizer.run, {"documents": first}, Placement())
        ports = {"documents": first, "tokenizer": words}
        self.ports = {**ports, "tokens": Stage("tokens", TokensRecipe(0.2), tokens.run, ports, Placement())}

    def copy(self, folder: Path) -> Run:
        shutil.copytree(self.root, folder)
        # The recipe names the sources where they were first.
        made = Run(folder)
        made.ports = self.ports
        return made

    def stage(
        self,
        options: Mapping[str, Any] | None = None,
        ports: Mapping[str, Stage] | None = None,
        place: Placement | None = None,
        **recipe: Any,
    ) -> Stage:
        # Telling languages apart costs each worker more than all the rest.
        recipe = {"choice": CHUNK, "shard_chunks": 8, "rules": Rules(same_language=False)} | recipe
        place = place or Placement(options=options or {})
        return Stage("questions", SynthesizeRecipe(**recipe), synthesize_qa.run, {**self.ports, **(ports or {})}, place)

    def run(self, stage: Stage, **how: Any) -> Outcome:
        return runner.run([stage], self.store, user_errors=(errors.UserError,), first_wait=0.05, **how)

    def made(self, stage: Stage, **how: Any) -> Artifact:
        outcome = self.run(stage, **how)
        assert outcome.ok, outcome.failures
        return outcome.artifacts["questions"]


def pairs(made: Artifact) -> list[dict[str, Any]]:
    return pa.concat_tables([read_table(made.path(name)) for name in made.files]).to_pylist()


def text_of(row: Mapping[str, Any]) -> str:
    """The text of a row's chunk: of its file, as nothing is cleaned here."""
    return Path(row["document"]).read_text()[row["start"] : row["end"]]
