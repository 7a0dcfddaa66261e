"""The packing plan of one text stage: which documents, how often, and where in which row.

One process and numpy. A plan reads the index of the token store; of the tokens only those near the cuts of documents
that are longer than a row. Input ports: `tokens`; `tokenizer` where cuts look for the ends of sentences; `chains`, of
an assemble stage, where related documents are joined. Output: `plan.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from infra.stage import Result, StageContext
from ringworld.data.assemble import Chains, chained
from ringworld.data.cuts import boundaries, cut_at_boundaries
from ringworld.data.decompose import Decompose, check_decompose, decomposed
from ringworld.data.files import absolute, join
from ringworld.data.mixture import Mixture, figures, parts_of
from ringworld.data.order import Schedule
from ringworld.data.packing import Slices, cut_in_rows, join_chains, length_histogram, pack
from ringworld.data.plan import MADE, PackingPlan, WeighBy, mix
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import check_same, load_tokenizer
from ringworld.data.untie import Untie, untied
from ringworld.errors import UserError


@dataclass(frozen=True)
class PackRecipe:
    """sequence   slots of a row
    lengths    least and greatest length in tokens of the documents to take; null: no bound
    weigh_by   whether each example or each token of a batch counts the same; see `ringworld.data.plan.loss_weights`
    mixture    domains, upsampling, replay, epochs
    over_long  documents longer than a row: cut, or drop
    cut        where: boundary (the end of a paragraph, line or sentence near the end of the row) or row
    documents  natural, or assembled: related documents, as the port `chains` names them, joined to long examples
    untie      shuffle chunks of the documents of some rows
    decompose  rows of many lengths, each of one document
    window     steps whose rows are sorted by attention work; 1: none
    steps, batch_tokens   of the stage; a bound on epochs and a curriculum over lengths need them, else 0
    """

    kind: ClassVar[str] = "pack"
    sequence: int
    lengths: tuple[int, int | None] = (2, None)
    weigh_by: WeighBy = "example"
    mixture: Mixture = field(default_factory=Mixture)
    over_long: Literal["cut", "drop"] = "cut"
    cut: Literal["boundary", "row"] = "boundary"
    documents: Literal["natural", "assembled"] = "natural"
    untie: Untie = field(default_factory=Untie)
    decompose: Decompose = field(default_factory=Decompose)
    window: int = 256
    steps: int = 0
    batch_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        least, most = self.lengths
        if self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: a row needs at least one slot")
        if most is not None and most < least:
            raise UserError(
                f"lengths=[{least},{most}]: the greatest length is below the least; swap them, or give null"
            )
        check_decompose(self.decompose, self.sequence)
        if self.decompose.least and (self.documents == "assembled" or self.untie.share):
            raise UserError("decompose makes rows of one document; it goes with neither documents=assembled nor untie")
        if (self.decompose.least or self.mixture.max_epochs is not None) and not self.budget:
            raise UserError("decompose and max_epochs need the stage's steps and batch_tokens")
        Schedule(window=self.window)

    @property
    def budget(self) -> int:
        """Tokens that the stage draws, where they are known."""
        return self.steps * self.batch_tokens

    @property
    def schedule(self) -> Schedule:
        if not self.decompose.least:
            return Schedule(window=self.window)
        return Schedule(self.window, max(1, -(-self.steps // self.decompose.cycles)), self.decompose.odds)


def run(context: StageContext, recipe: PackRecipe) -> Result:
    """Raises UserError, naming the key, for documents that the recipe asks for and the store lacks."""
    store = TokenStore.open(context.inputs["tokens"].path("tokens"))
    index = store.index
    where = f"stages.{context.stage.name.removeprefix('pack-')}"
    parts = parts_of(index, recipe.mixture, recipe.lengths, recipe.budget, where)
    packing = _Packing(context, recipe, store, where)
    plans: dict[str, PackingPlan] = {}
    shares: dict[str, float] = {}
    for part in parts:
        made = packing.plans(part.documents)
        tokens = sum(_pairs(plan) for plan in made.values())
        for sequence, plan in made.items():
            name = f"{part.name} in rows of {sequence}".strip() if len(made) > 1 else part.name
            plans[name] = plan
            # Shares are of the slots that are drawn, of which a plan fills some.
            shares[name] = part.share * _pairs(plan) / tokens / plan.fill
    plan = mix(plans, {name: share / sum(shares.values()) for name, share in shares.items()}).scheduled(recipe.schedule)
    plan.save(join(absolute(context.attempt_dir), "plan.parquet"))
    documents = np.unique(np.concatenate([part.documents for part in parts]))
    values = {
        "rows": plan.num_rows,
        "fill": round(plan.fill, 6),
        "slices": len(plan.row),
        "documents": len(documents),
        "documents_available": len(index.documents("train")),
        "documents_cut": packing.cut,
        "tokens": int(plan.length.sum(dtype="int64")),
        "lengths": length_histogram(index.tokens[documents]),
        "mixture": figures(parts, index, recipe.budget),
        "row_lengths": {str(corpus.sequence): 0 for corpus in plan.corpora},
        "made": {word: int((plan.made == kind).sum()) for kind, word in enumerate(MADE) if (plan.made == kind).any()},
    }
    for corpus in plan.corpora:
        values["row_lengths"][str(corpus.sequence)] += corpus.rows
    if packing.dropped:
        values["dropped"] = {"longer than a row": packing.dropped}
    return Result(("plan.parquet",), values)


class _Packing:
    """How this recipe packs documents; counts what it cuts and drops."""

    def __init__(self, context: StageContext, recipe: PackRecipe, store: TokenStore, where: str) -> None:
        self.cut = self.dropped = 0
        self._recipe, self._store, self._where = recipe, store, where
        self._ends: np.ndarray | None = None
        if recipe.over_long == "cut" and recipe.cut == "boundary" and not recipe.decompose.least:
            tokenizer = load_tokenizer(context.inputs["tokenizer"].path("tokenizer"))
            check_same(store.tokenizer_hash, tokenizer.hash, f"the token store and the tokenizer of {where}")
            self._ends = boundaries(tokenizer)
        self._chains: Chains | None = None
        if recipe.documents == "assembled":
            self._chains = Chains.load(context.inputs["chains"].path("chains.parquet"))

    def plans(self, documents: np.ndarray) -> Mapping[int, PackingPlan]:
        """The plans of some documents by the length of their rows."""
        recipe, index = self._recipe, self._store.index
        fits = index.tokens[documents] - 1 <= recipe.sequence
        if recipe.over_long == "drop":
            self.dropped += int((~fits).sum())
            documents, fits = documents[fits], fits[fits]
            if not len(documents):
                raise UserError(
                    f"{self._where}.over_long=drop: every document is longer than sequence={recipe.sequence}; "
                    f"use over_long=cut, or bound {self._where}.lengths"
                )
        self.cut += int((~fits).sum())
        if recipe.decompose.least:
            found = decomposed(index, documents, recipe.decompose.least, recipe.sequence)
            return {size: pack(index, slices, size, recipe.weigh_by) for size, slices in found.items()}
        parts = [self._cut(documents[~fits]), self._short(documents[fits])]
        plan = pack(index, [part for part in parts if len(part.document)], recipe.sequence, recipe.weigh_by)
        return {recipe.sequence: untied(plan, recipe.untie, recipe.seed)}

    def _cut(self, documents: np.ndarray) -> Slices:
        if self._ends is None or not len(documents):
            return cut_in_rows(self._store.index, documents, self._recipe.sequence)
        return cut_at_boundaries(self._store, documents, self._recipe.sequence, self._ends)

    def _short(self, documents: np.ndarray) -> Slices:
        index, sequence = self._store.index, self._recipe.sequence
        if self._chains is None:
            return cut_in_rows(index, documents, sequence)
        return join_chains(index, chained(index, documents, self._chains), sequence)


def _pairs(plan: PackingPlan) -> int:
    return int(plan.answers.sum(dtype="int64"))
