"""Which documents a text stage draws, and how often: domains, long and short ones, lengths that count more. Pure.

Documents fall into classes by domain, by whether they are replay (shorter than what the stage is for), and by the
length from which they are upsampled. Each class is packed apart and gets a share of the tokens that are drawn; within a
class every document comes once before any comes again.

- Domains have weights. Those with long documents share the tokens that are not replay, those with short ones the
  replay.
- Replay: long training forgets short text. ProLong (arXiv:2410.02660) trains on 60% long and 40% short data; Ibrahim et
  al. (arXiv:2403.08763) need 5% of the old data under a weak shift of the distribution and 25% under a strong one.
- Epochs: text is worth repeating about four times (Muennighoff et al., arXiv:2305.16264). A class that would come more
  often than `max_epochs` is drawn that often, and the others make up for it in proportion (UniMax, arXiv:2304.09151);
  where all of them together hold too little, that is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ringworld.data.packing import describe_lengths
from ringworld.data.token_store import TokenIndex
from ringworld.errors import UserError

REPLAY: Mapping[str, float] = {"prolong": 0.4, "weak": 0.05, "strong": 0.25}
"""Shares of short data by name: ProLong's, and those of Ibrahim et al. for a weak and for a strong shift."""


@dataclass(frozen=True)
class Mixture:
    """domains     the weight of each domain, relative; others are left out. Empty: all documents as they are
    upsample    "N": F: documents of N tokens or more come F times as often; of several, the longest N that fits counts
    replay      the share of the tokens from documents shorter than the stage's `lengths`, or a name of `REPLAY`
    max_epochs  how often a document may come in a stage; null: no bound
    """

    domains: Mapping[str, float] = field(default_factory=dict)
    upsample: Mapping[str, float] = field(default_factory=dict)
    replay: float | str = 0.0
    max_epochs: float | None = None

    def __post_init__(self) -> None:
        if self.domains:
            check_shares(self.domains, "books: 0.7, code: 0.3")
        for length, factor in self.upsample.items():
            if not length.isdecimal() or int(length) < 1:
                raise UserError(f"upsample.{length}: a length in tokens, as in upsample={{'32768': 2.0}}")
            if not (math.isfinite(factor) and factor > 0):
                raise UserError(f"upsample.{length}={factor}: a factor above 0; to leave documents out, use lengths")
        if isinstance(self.replay, str) and self.replay not in REPLAY:
            raise UserError(f"replay={self.replay!r}: a share, or one of {', '.join(REPLAY)}")
        if not 0 <= self.replay_share < 1:
            raise UserError(f"replay={self.replay}: a share of the tokens, at least 0 and below 1, such as 0.4")
        if self.max_epochs is not None and not self.max_epochs > 0:
            raise UserError(f"max_epochs={self.max_epochs}: a number above 0, such as 4, or null for no bound")

    @property
    def replay_share(self) -> float:
        return REPLAY[self.replay] if isinstance(self.replay, str) else self.replay


def check_shares(shares: Mapping[str, float], example: str) -> None:
    """UserError for shares that are no proportions: a negative one, or none above 0."""
    if any(not math.isfinite(share) or share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
        raise UserError(
            f"mixture={dict(shares)}: give each its share, at least 0 and one of them above it, "
            f"as in mixture={{{example}}}"
        )


@dataclass(frozen=True, eq=False)
class Part:
    """A class of documents: its name, the documents (int64, ascending), the share of the tokens that it gets.

    asked: the share by weights alone, before any bound on epochs.
    """

    name: str
    documents: np.ndarray
    share: float
    asked: float


def parts_of(
    index: TokenIndex,
    mixture: Mixture,
    lengths: tuple[int, int | None],
    budget: int,
    where: str,
) -> tuple[Part, ...]:
    """The classes of a stage's training documents, with shares that add up to 1.

    lengths: least and greatest tokens of its own documents; replay is what is shorter. budget: tokens that the stage
    draws; only a bound on epochs needs it. where: the stage's key, for messages.

    Raises UserError, naming key, value and remedy: a domain that the corpus lacks or that has weight and no documents,
    replay without short documents, a bound on epochs that the corpus cannot meet.
    """
    least, most = max(2, lengths[0]), lengths[1]
    documents = index.documents("train")
    names, domain = _domains(index, documents, mixture, where)
    tokens = index.tokens[documents]
    taken = domain >= 0
    long = taken & (tokens >= least) & (tokens <= (np.inf if most is None else most))
    short = taken & (tokens >= 2) & (tokens < least)
    replay = mixture.replay_share
    if not long.any():
        bound = "null" if most is None else most
        raise UserError(
            f"{where}.lengths=[{lengths[0]},{bound}]: none of {taken.sum()} train documents has so many tokens; they "
            f"have {describe_lengths(tokens[taken])}. Change {where}.lengths, or add sources"
        )
    if replay and not short.any():
        raise UserError(
            f"{where}.replay={mixture.replay}: no train document is shorter than {where}.lengths[0]={lengths[0]}; "
            "raise lengths[0], add short sources, or take replay out"
        )
    for number, name in enumerate(names):
        if not ((long | short if replay else long) & (domain == number)).any():
            raise UserError(
                f"{where}.mixture.{name}={mixture.domains[name]}: none of the {(domain == number).sum()} train "
                f"documents of {name} is within {where}.lengths; they have "
                f"{describe_lengths(tokens[domain == number])}. Change lengths, or take {name} out of the mixture"
            )

    weight = np.array([mixture.domains.get(name, 1.0) for name in names])
    found: list[tuple[str, np.ndarray, float]] = []
    for word, chosen, share in (("", long, 1 - replay), ("replay", short, replay)):
        if not share:
            continue
        present = np.array([(chosen & (domain == number)).any() for number in range(len(names))])
        for number, name in enumerate(names):
            if present[number]:
                mine = documents[chosen & (domain == number)]
                part = share * weight[number] / weight[present].sum()
                found += [
                    (" ".join(filter(None, (name, word, bucket))), some, part * inner)
                    for bucket, some, inner in _buckets(index, mine, mixture.upsample)
                ]
    asked = np.array([share for *_, share in found])
    held = np.array([float((index.tokens[some] - 1).sum()) for _, some, _ in found])
    shares = asked if mixture.max_epochs is None else _capped(asked, held, budget, mixture.max_epochs, where)
    return tuple(
        Part(name, some, float(share), float(wanted))
        for (name, some, _), share, wanted in zip(found, shares, asked, strict=True)
    )


def epochs(part_tokens: int, share: float, budget: int) -> float:
    """How often the documents of a class come when a stage draws `budget` tokens."""
    return share * budget / max(1, part_tokens)


def figures(parts: Sequence[Part], index: TokenIndex, budget: int) -> list[dict[str, Any]]:
    """A row for each class: documents, tokens, the share asked and given, the epochs in `budget` tokens."""
    rows = []
    for part in parts:
        tokens = int((index.tokens[part.documents] - 1).sum())
        rows.append(
            {
                "name": part.name or "all",
                "documents": len(part.documents),
                "tokens": tokens,
                "asked": round(part.asked, 6),
                "share": round(part.share, 6),
                "epochs": round(epochs(tokens, part.share, budget), 3),
            }
        )
    return rows


def _domains(
    index: TokenIndex, documents: np.ndarray, mixture: Mixture, where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """The domains that have weight, and which of them each document is of; -1 for none of them."""
    if not mixture.domains:
        return ("",), np.zeros(len(documents), np.int64)
    names = tuple(name for name, weight in mixture.domains.items() if weight > 0)
    of = np.full(len(documents), "", object) if index.corpus is None else index.corpus[documents]
    present, inverse = np.unique(of.astype(str), return_inverse=True)
    for name in names:
        if name not in present:
            there = ", ".join(repr(str(domain)) for domain in present)
            raise UserError(
                f"{where}.mixture.{name}: no train document is of the domain {name!r}; the corpus has {there}. "
                "Domains are named with the sources"
            )
    number = np.array([names.index(domain) if domain in names else -1 for domain in present.tolist()])
    return names, number[inverse]


def _buckets(
    index: TokenIndex, documents: np.ndarray, upsample: Mapping[str, float]
) -> list[tuple[str, np.ndarray, float]]:
    """(name, documents, share) of the classes by length of some documents, shares adding up to 1."""
    edges = sorted((int(length), factor) for length, factor in upsample.items())
    tokens = index.tokens[documents]
    bucket = np.searchsorted([length for length, _ in edges], tokens, side="right")
    factors = [1.0, *(factor for _, factor in edges)]
    names = ["", *(f"{length}+" for length, _ in edges)]
    held = [float((tokens[bucket == k] - 1).sum()) * factors[k] for k in range(len(factors))]
    return [(names[k], documents[bucket == k], held[k] / sum(held)) for k in range(len(factors)) if held[k]]


def _capped(asked: np.ndarray, held: np.ndarray, budget: int, most: float, where: str) -> np.ndarray:
    """Shares at most `most` epochs of what each class holds; what that frees goes to the others in proportion."""
    bound = most * held / max(1, budget)
    if bound.sum() < 1:
        raise UserError(
            f"{where}.max_epochs={most:g}: the stage draws {budget} tokens and its documents hold {int(held.sum())}, "
            f"which is {budget / held.sum():.1f} epochs; add sources, take fewer steps, or raise max_epochs"
        )
    shares = asked.copy()
    while (over := shares > bound * (1 + 1e-12)).any():
        shares[over] = bound[over]
        free = shares < bound * (1 - 1e-12)
        shares[free] *= (1 - shares[~free].sum()) / shares[free].sum()
    return shares
