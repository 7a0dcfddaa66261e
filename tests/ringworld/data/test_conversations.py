"""A record is its turns or a named reason; and the loss counts every token of the answers, and no other."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.conversations import Refused, Turn, digest, parse
from ringworld.data.loader import Loader
from ringworld.data.loader import Part as BatchPart
from ringworld.data.packing import cut_in_rows, pack, select_whole
from ringworld.data.plan import PackingPlan, WeighBy, mix
from ringworld.data.templates import Encoded, PlainTemplate
from ringworld.data.token_store import StoreInfo, TokenStore, write_index, write_shard
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.mesh import MeshSpec, make_mesh
from ringworld.train.loss import cross_entropy

BYTES = ByteTokenizer()
LWM = "You are a helpful assistant. "


def messages(*turns: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def sharegpt(*turns: tuple[str, object]) -> dict[str, object]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


@pytest.mark.parametrize(
    "record",
    [
        messages(("user", "Who?"), ("assistant", "Ahab."), ("user", "Why?"), ("assistant", "A whale.")),
        {"id": "7", "data": ["Who?", "Ahab.", "Why?", "A whale."]},
        sharegpt(("human", "Who?"), ("gpt", "Ahab."), ("human", "Why?"), ("gpt", "A whale.")),
        # As pyarrow gives rows of a file that has columns of several shapes.
        {"data": None, "messages": messages(("user", "Who?"), ("assistant", "Ahab."))["messages"][:0]}  # type: ignore[index]
        | messages(("user", "Who?\r\n"), ("assistant", " Ahab."), ("user", "Why?"), ("assistant", "A whale.\0")),
        # What cannot be learned from is dropped from both ends.
        sharegpt(
            ("gpt", "Hi!"), ("human", "Who?"), ("gpt", "Ahab."), ("human", "Why?"), ("gpt", "A whale."), ("human", "Oh")
        ),
    ],
)
def test_every_shape_of_record_gives_the_same_turns(record: dict[str, object]) -> None:
    turns = parse(record)
    assert turns == (
        Turn("user", "Who?"),
        Turn("assistant", "Ahab."),
        Turn("user", "Why?"),
        Turn("assistant", "A whale."),
    )
    assert digest(turns) == digest(parse({"data": ["Who?", "Ahab.", "Why?", "A whale."]}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "reason", "says"),
    [
        ({"text": "Call me Ishmael."}, "no such field", "has: text"),
        (["Who?", "Ahab."], "no such field", "not list"),
        (None, "no such field", "not null"),
        ({"data": []}, "empty", "data has no turns"),
        ({"data": "Who? Ahab."}, "broken turn", "data is str, not a list"),
        ({"messages": ["Who?", "Ahab."]}, "broken turn", "something else than objects with role and content"),
        (
            messages(("user", "Who?"), ("assistant", None)),
            "broken turn",
            "turn 2: role 'assistant' and a text that is null",
        ),
        ({"messages": [{"content": "Who?"}]}, "broken turn", "turn 1: role None"),
        (messages(("user", "Who?"), ("tool", "42")), "unknown role", "turn 2: 'tool'; known: system, user"),
        (messages(("user", "Who?")), "no answer", "1 turns"),
        (messages(("assistant", "Ahab."), ("user", "Who?")), "no answer", "2 turns"),
        (messages(("system", "Be brief.")), "no answer", "0 turns"),
        (messages(("user", "Who?"), ("assistant", " \n")), "empty turn", "turn 2, the assistant's"),
        (messages(("user", ""), ("assistant", "Ahab.")), "empty turn", "turn 1, the user's"),
        (messages(("user", "a"), ("user", "b"), ("assistant", "c")), "out of turn", "turn 2 is the user's"),
        (messages(("user", "a"), ("system", "b"), ("assistant", "c")), "out of turn", "turn 2 is the system's"),
    ],
)
def test_a_record_that_is_no_conversation_is_refused_with_a_reason(record: object, reason: str, says: str) -> None:
    refused = parse(record)
    assert isinstance(refused, Refused)
    assert refused.reason == reason
    assert says in refused.detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "data", "conversations", "role", "from", "value", "content"]),
            inner,
            max_size=3,
        )
    ),
)


@settings(max_examples=60)
@given(JSON)
def test_no_record_at_all_breaks_the_parser(record: object) -> None:
    turns = parse(record)
    if not isinstance(turns, Refused):
        assert turns[-1].role == "assistant"
        assert all(turn.text for turn in turns)


SEQUENCE = 200
TALKS = {
    "chat": [[f"Q{number}", "a" * (40 * number + 1), "more?", f"yes {number}"] for number in range(5)],
    "qa": [[f"{'page ' * number}Who?", f"Ahab {number}."] for number in range(4)],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = str(tmp_path_factory.mktemp("chat"))
    info = StoreInfo(BYTES.hash, BYTES.vocabulary_size, BYTES.eos_id, BYTES.pad_id, answers=True)
    talks = [(corpus, parse({"data": talk})) for corpus, all_of in TALKS.items() for talk in all_of]
    encoded = PlainTemplate(BYTES).encode([turns for _, turns in talks])  # type: ignore[misc]
    encoded = [found for found in encoded if isinstance(found, Encoded)]
    count = len(talks)
    columns = {
        "document": range(count),
        "sha256": [""] * count,
        "source": [""] * count,
        "shard": [0] * count,
        "offset": write_shard(folder, 0, [found.ids for found in encoded], info, [found.answer for found in encoded]),
        "tokens": [len(found.ids) for found in encoded],
        "split": ["train"] * count,
        "corpus": [corpus for corpus, _ in talks],
        "answers": [int(found.answer.sum()) for found in encoded],
    }
    write_index(folder, info, pa.table({name: pa.array(column) for name, column in columns.items()}))
    return TokenStore.open(folder)


def plan_of(store: TokenStore, weigh_by: WeighBy) -> PackingPlan:
    plans = {}
    for corpus in TALKS:
        chosen = select_whole(store.index, "train", corpus, SEQUENCE, "here")
        plans[corpus] = pack(store.index, cut_in_rows(store.index, chosen.documents, SEQUENCE), SEQUENCE, weigh_by)
    return mix(plans, {"chat": 0.7, "qa": 0.3})


def test_the_loss_counts_exactly_the_tokens_of_the_answers(store: TokenStore) -> None:
    """Where the gradient of the trainer's own loss is not zero is where the next token is an answer's."""
    plan = plan_of(store, "example")
    batch = Loader(store, plan, 0, plan.num_rows, shuffle=False).batch(0)
    hidden = jax.random.normal(jax.random.key(0), (plan.num_rows, SEQUENCE, 8))
    head = jax.random.normal(jax.random.key(1), (8, BYTES.vocabulary_size))
    mesh = make_mesh(MeshSpec(fsdp=1, ring=-1))
    gradient = jax.grad(
        lambda x: cross_entropy(x, (head,), jnp.array(batch.targets), jnp.array(batch.loss_weight), mesh=mesh).sum()
    )(hidden)
    counted = np.asarray(jnp.abs(gradient).sum(-1) > 0)
    assert not counted[batch.segments == 0].any()
    said: list[str] = []
    for row, segment in sorted({(r, int(s)) for r, s in zip(*_places(batch.segments), strict=True)}):
        here = batch.segments[row] == segment
        ids, marks = batch.targets[row][here], counted[row][here]
        # Answers alone, told apart by what is not counted between them; $ is end of text.
        text = "".join("$" if i == BYTES.eos_id else chr(i) if m else "_" for i, m in zip(ids, marks, strict=True))
        said.append("|".join(part for part in text.split("_") if part))
    expected = []
    for question, *rest in (talk for talks in TALKS.values() for talk in talks):
        text = f"{LWM}USER: {question} ASSISTANT: {rest[0]}$"
        if len(rest) > 1:
            text += f"USER: {rest[1]} ASSISTANT: {rest[2]}$"
        if len(text) <= SEQUENCE + 1:
            expected.append("|".join(f" {answer}$" for answer in rest[::2]))
    assert 0 < len(expected) < sum(map(len, TALKS.values()))
    assert max(batch.segments.max(axis=1)) > 1
    assert sorted(said) == sorted(expected)


def _places(segments: np.ndarray) -> tuple[list[int], list[int]]:
    rows, columns = np.nonzero(segments)
    return rows.tolist(), segments[rows, columns].tolist()


@pytest.mark.parametrize("weigh_by", ["example", "token"])
def test_packing_is_invisible_to_the_loss_of_conversations(store: TokenStore, weigh_by: WeighBy) -> None:
    """Any losses of the tokens: packed, the batch's loss is that of every conversation in a row of its own."""
    plan = plan_of(store, weigh_by)
    batch = Loader(store, plan, 0, plan.num_rows, shuffle=False).batch(0)
    losses = [np.random.default_rng(number).random(SEQUENCE) for number in range(len(store.index.tokens))]
    packed = 0.0
    for row, slot, document, length in zip(plan.row, plan.slot, plan.document, plan.length, strict=True):
        weights = batch.loss_weight[row, slot : slot + length]
        packed += float((weights * losses[document][:length]).sum())
    alone = []
    for document in sorted(plan.document.tolist()):
        [marks] = store.read_answers([document], [1], [int(store.index.tokens[document]) - 1])
        alone.append(losses[document][: len(marks)][marks])
    expected = np.mean([loss.mean() for loss in alone]) if weigh_by == "example" else np.concatenate(alone).mean()
    assert packed == pytest.approx(expected, rel=1e-6)
    assert float(batch.loss_weight.sum()) == pytest.approx(1, rel=1e-6)


def test_any_part_of_a_batch_has_the_weights_of_the_whole(store: TokenStore) -> None:
    loader = Loader(store, plan_of(store, "example"), 0, 3)
    for step in range(3):
        whole = loader.batch(step)
        for first in range(0, SEQUENCE, 37):
            part = loader.batch(step, BatchPart(slice(1, 3), slice(first, first + 37)))
            assert np.array_equal(part.loss_weight, whole.loss_weight[1:3, first : first + 37])
            assert np.array_equal(part.targets, whole.targets[1:3, first : first + 37])


def test_a_plan_of_text_and_a_store_of_conversations_do_not_meet(store: TokenStore) -> None:
    plan = replace(plan_of(store, "example"), marked=False)
    with pytest.raises(UserError, match=r"the packing plan is of text .* and the token store .* of conversations"):
        Loader(store, plan, 0, 1)
