"""What a recall stage trains on: documents to look things up in, each as long as one of its rows.

Of three corpora, in the proportions of the mixture; `ringworld.synthesis.recall` makes their documents:

- needle: windows of the training documents with needles and questions, of the needle test's wording;
- passage: such windows with a passage that comes again and again;
- copy: a passage of random tokens over and over, for rows that are too short for anything else.

One process and numpy. Input ports: `tokens` and `tokenizer`. Output: `tokens/`, a token store that marks what the loss
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join, list_files
from ringworld.data.mixture import check_shares
from ringworld.data.token_store import ANSWERS_INDEX_SCHEMA, TokenStore, write_index, write_shard
from ringworld.data.tokenizers import check_same, load_tokenizer
from ringworld.errors import UserError
from ringworld.synthesis.recall import Phrases, copy_document, needle_document, passage_document

NEEDLE, PASSAGE, COPY = RECALL_CORPORA = ("needle", "passage", "copy")
_SHARD_TOKENS = 1 << 25
_SAMPLE_TOKENS = 256


@dataclass(frozen=True)
class RecallRecipe:
    """sequence    tokens of each document
    documents   how many are made: as many as the stage's steps read rows
    mixture     the share of them from each of needle, passage and copy; 0 leaves one out
    counted     share of the text's own tokens that the loss counts, at random, beside all that is to be recalled
    """

    kind: ClassVar[str] = "recall"
    sequence: int
    documents: int
    mixture: Mapping[str, float]
    counted: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequence < 16 or self.documents < 1:
            raise UserError(
                f"sequence={self.sequence}, documents={self.documents}: give 16 tokens or more, one document at least"
            )
        if not 0 <= self.counted <= 1:
            raise UserError(f"counted={self.counted}: a share of the text's tokens, 0 to 1")
        check_shares(self.mixture, ", ".join(f"{name}: 0.5" for name in (NEEDLE, PASSAGE)))

    @property
    def corpora(self) -> dict[str, int]:
        """Documents of each corpus that is drawn, one at least."""
        total = sum(self.mixture.values())
        return {
            name: max(1, round(self.documents * share / total)) for name, share in self.mixture.items() if share > 0
        }


def run(context: StageContext, recipe: RecallRecipe) -> Result:
    """Raises UserError, naming the key, for documents that nothing fits and for text that has none so long."""
    where = f"stages.{context.stage.name.removeprefix('recall-')}"
    text = TokenStore.open(context.inputs["tokens"].path("tokens"))
    tokenizer = load_tokenizer(context.inputs["tokenizer"].path("tokenizer"))
    check_same(text.tokenizer_hash, tokenizer.hash, f"the token store and the tokenizer of {where}")
    folder = join(absolute(context.attempt_dir), "tokens")
    answers = _write(context, recipe, _Documents(recipe, text, Phrases.of(tokenizer, recipe.seed), where), folder)
    made, first = TokenStore.open(folder), 0
    samples = []
    for corpus, documents_of in recipe.corpora.items():
        samples.append({"corpus": corpus, "text": tokenizer.decode(made.read(first)[-_SAMPLE_TOKENS:])})
        first += documents_of
    values = {"documents": first, "tokens": int(made.index.tokens.sum()), "answer_tokens": answers, "samples": samples}
    return Result(tuple(f"tokens/{name}" for name in list_files(folder)), values)


def _write(context: StageContext, recipe: RecallRecipe, documents: _Documents, folder: str) -> int:
    """The store, shard by shard, corpus after corpus; returns the tokens that count."""
    info = replace(documents.text.info, answers=True)
    names = [name for name, documents_of in recipe.corpora.items() for _ in range(documents_of)]
    of_a_shard = max(1, _SHARD_TOKENS // recipe.sequence)
    offsets: list[int] = []
    answers: list[int] = []
    for shard, first in enumerate(range(0, len(names), of_a_shard)):
        made = [documents.draw(name) for name in names[first : first + of_a_shard]]
        marks = [marks for _, marks in made]
        offsets += write_shard(folder, shard, [ids for ids, _ in made], info, marks).tolist()
        answers += [int(counted[1:].sum()) for counted in marks]
        context.report(step=len(offsets), of=len(names))
    columns = {
        "document": range(len(names)),
        "sha256": [""] * len(names),
        "source": [f"{name}-{number}" for number, name in enumerate(names)],
        "shard": [number // of_a_shard for number in range(len(names))],
        "offset": offsets,
        "tokens": [recipe.sequence + 1] * len(names),
        "split": ["train"] * len(names),
        "corpus": names,
        "answers": answers,
    }
    write_index(folder, info, pa.table(columns, schema=ANSWERS_INDEX_SCHEMA))
    return sum(answers)


class _Documents:
    """Documents of one length, each of a window anywhere in the training documents that are as long."""

    def __init__(self, recipe: RecallRecipe, text: TokenStore, phrases: Phrases, where: str) -> None:
        self.text = text
        self._recipe, self._phrases = recipe, phrases
        self._rng = np.random.default_rng((recipe.seed, recipe.sequence))
        length, documents = recipe.sequence, text.index.documents("train")
        tokens = text.index.tokens[documents] - 1  # without its end of text
        fits = tokens >= length
        if set(recipe.corpora) - {COPY} and not fits.any():
            raise UserError(
                f"{where}.sequence={length}: none of {len(documents)} training documents is as long; the longest has "
                f"{int(tokens.max(initial=0))} tokens. Give longer documents, or mixture {{{COPY}: 1}}"
            )
        least = phrases.pair * 5 // 4
        if recipe.corpora.get(NEEDLE) and length < least:
            raise UserError(
                f"{where}.sequence={length}: a needle and its question take {phrases.pair} tokens; use rows of {least} "
                f"or more, or mixture {{{COPY}: 1}}"
            )
        self._documents, self._tokens = documents[fits], tokens[fits]
        self._ends = np.cumsum(self._tokens)

    def draw(self, corpus: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, marks) of the next document of a corpus."""
        length = self._recipe.sequence
        if corpus == COPY:
            return copy_document(length, self._phrases, self._rng)
        kind = needle_document if corpus == NEEDLE else passage_document
        return kind(self._window(), length, self._phrases, self._recipe.counted, self._rng)

    def _window(self) -> np.ndarray:
        """int [length]; a document is drawn as often as it has tokens."""
        length = self._recipe.sequence
        chosen = int(np.searchsorted(self._ends, self._rng.integers(self._ends[-1]), side="right"))
        start = int(self._rng.integers(self._tokens[chosen] - length + 1))
        return self.text.read(int(self._documents[chosen]), start, length)
