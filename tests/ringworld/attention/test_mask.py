"""What bounds prove about a block is true, and enough is proven for cost to follow the documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.attention.mask import (
    EVERYTHING,
    Bounds,
    Rule,
    Tokens,
    any_visible,
    bounds,
    is_full,
    is_needed,
    schedule,
    split,
    visible,
)

BLOCK = 16
RULES = {"everything": EVERYTHING, "window": Rule(window=40), "window and sinks": Rule(window=40, sinks=5)}


def tokens_of(positions, segments) -> Tokens:
    return Tokens(jnp.asarray(positions, jnp.int32), jnp.asarray(segments, jnp.int32))


def packed(lengths: list[int], total: int) -> Tokens:
    """Documents of these lengths in order (negative: padding), then padding up to the total."""
    positions = np.concatenate([np.arange(abs(n)) for n in lengths])
    segments = np.concatenate([np.full(abs(n), number * (n > 0)) for number, n in enumerate(lengths, 1)])
    left = (0, total - len(positions))
    return tokens_of(np.pad(positions, left), np.pad(segments, left))


def blocks_of(tokens: Tokens, rule: Rule = EVERYTHING) -> tuple[Bounds, Bounds, np.ndarray]:
    """The bounds of the blocks as queries [n, 1] and as keys [n], and the mask itself as [n, n, BLOCK * BLOCK]."""
    found = bounds(split(tokens, BLOCK))
    mask = np.asarray(visible(tokens, tokens, rule))
    n = len(tokens.segments) // BLOCK
    tiles = mask.reshape(n, BLOCK, n, BLOCK).swapaxes(1, 2).reshape(n, n, -1)
    return jax.tree.map(lambda x: x[:, None], found), found, tiles


def test_the_rule_is_causal_within_a_segment_and_blind_outside_it():
    tokens = tokens_of([0, 1, 0, 1, 0], [3, 3, 9, 9, 0])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert np.array_equal(visible(tokens, tokens), np.array(expected, bool))


def test_a_window_reaches_back_so_far_and_sinks_stay_in_sight():
    tokens = tokens_of([0, 1, 2, 3, 4, 0, 1], [1, 1, 1, 1, 1, 2, 2])
    seen = np.asarray(visible(tokens, tokens, Rule(window=2, sinks=1)))
    assert [np.flatnonzero(row).tolist() for row in seen] == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4], [5], [5, 6]]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("layout", ["in order", "blocks permuted", "tokens permuted"])
def test_a_block_proven_empty_is_empty_and_a_block_proven_full_is_full(layout, rule):
    rng = np.random.default_rng(0)
    for _ in range(10):
        lengths = list(rng.integers(-20, 60, size=20))
        tokens = packed([n for n in lengths if n], 64 * BLOCK)
        order = np.arange(64 * BLOCK)
        if layout == "blocks permuted":
            order = rng.permutation(order.reshape(-1, 8)).ravel()
        elif layout == "tokens permuted":
            order = rng.permutation(order)
        query, key, tiles = blocks_of(Tokens(tokens.positions[order], tokens.segments[order]), rule)
        needed, full = np.asarray(is_needed(query, key, rule)), np.asarray(is_full(query, key, rule))
        assert not tiles[~needed].any()
        assert tiles[full].all()
        assert needed[full].all()


def test_documents_in_order_cost_no_block_beyond_those_they_touch():
    rng = np.random.default_rng(1)
    for _ in range(10):
        tokens = packed(list(rng.integers(1, 200, size=12)), 160 * BLOCK)
        query, key, tiles = blocks_of(tokens)
        assert np.array_equal(is_needed(query, key), tiles.any(-1))
        single = np.asarray(query.first_segment == query.last_segment) & ~np.asarray(query.padded)
        assert np.array_equal(is_full(query, key), tiles.all(-1) & single)


def test_a_window_makes_cost_linear_in_the_document():
    rule = Rule(window=3 * BLOCK, sinks=4)
    query, key, tiles = blocks_of(packed([64 * BLOCK], 64 * BLOCK), rule)
    plan = schedule(query, key, rule)
    assert np.array_equal(is_needed(query, key, rule), tiles.any(-1))
    assert np.asarray(plan.needed).tolist() == [1, 2, 3, 4] + [5] * 60  # the window's four blocks, and the sinks'
    assert np.asarray(plan.full).tolist() == [0, 1] + [2] * 62


@pytest.mark.parametrize(("documents", "needed"), [(1, 64 * 65 // 2), (16, 16 * 4 * 5 // 2), (64, 64)])
def test_cost_follows_the_squared_lengths_of_documents(documents, needed):
    query, key, _ = blocks_of(packed([64 * BLOCK // documents] * documents, 64 * BLOCK))
    plan = schedule(query, key)
    assert int(plan.needed.sum()) == needed
    assert int(plan.full.sum()) == needed - 64


def test_a_schedule_names_the_full_blocks_then_the_masked_ones():
    query, key, tiles = blocks_of(packed([100, -30, 60, 300, 5], 40 * BLOCK))
    plan = jax.tree.map(np.asarray, schedule(query, key))
    for row in range(40):
        order, full, needed = plan.order[row], plan.full[row], plan.needed[row]
        assert sorted(order) == list(range(40))
        assert tiles[row, order[:full]].all()
        assert not tiles[row, order[needed:]].any()
        assert set(order[:needed]) == set(np.flatnonzero(tiles[row].any(-1)))


def test_a_hop_is_skipped_only_when_no_row_needs_it():
    early, late = packed([8], 8), tokens_of(np.arange(8, 16), np.ones(8))
    other, padding = packed([-1, 7], 8), packed([-8], 8)

    def seen(*rows: tuple[Tokens, Tokens]) -> bool:
        query, key = (Tokens(*map(jnp.stack, zip(*side, strict=True))) for side in zip(*rows, strict=True))
        return bool(any_visible(query, key))

    assert seen((late, early))
    assert not seen((early, late))
    assert not seen((late, other))
    assert not seen((padding, padding))
    assert seen((early, late), (late, early))
