"""What the harness is told of a model is what the model says: likelihoods, windows, text, chats."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.evaluate.harness import Harness, spell_chat, windows_of
from ringworld.generate.chat import Prompts
from ringworld.generate.checkpoint import Checkpoint
from ringworld.generate.engine import Engine
from ringworld.generate.programs import Programs
from ringworld.generate.sampler import Sampler
from ringworld.mesh import MeshSpec, make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import init_params
from ringworld.model.layout import Layout
from ringworld.model.llama import bind
from ringworld.model.rope import make_rope
from ringworld.model.sharding import param_shardings

MODEL = ModelConfig(264, 1, 16, 2, 1, 8, 16, tied_embeddings=True, rope=RopeConfig(1e4))
BYTES = ByteTokenizer()
CONTEXT = 40


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def harness(params) -> Harness:
    """On a ring of two devices."""
    mesh = make_mesh(parse_mesh("ring=2"), jax.devices()[:2])
    placed = jax.device_put(params, param_shardings(MODEL, mesh))
    programs = Programs(MODEL, placed, make_rope(MODEL.rope, 8), mesh, "float32")
    sampler = Sampler(Engine(programs, slots=2, context=CONTEXT + 1, chunk=64), BYTES, frozenset({BYTES.eos_id}))
    checkpoint = Checkpoint(
        "tiny", MODEL, make_rope(MODEL.rope, 8), "", CONTEXT, "float32", BYTES, None, sampler.stop_ids, None
    )
    return Harness(sampler, Prompts(checkpoint), CONTEXT, BYTES.eos_id)


@jax.jit
def hidden_and_head(params, tokens, segments):
    layout = Layout(make_mesh(MeshSpec(), jax.devices()[:1]), jnp.dtype("float32"))
    model = bind(MODEL, params)
    positions = jnp.arange(tokens.shape[1])[None]
    return model(tokens, positions, segments, make_rope(MODEL.rope, 8), layout), model.output_weights()[0]


def logprobs(params, ids: list[int]) -> np.ndarray:
    """float64 [tokens, vocabulary]: of what follows each."""
    padding = [0] * (64 - len(ids))
    hidden, head = hidden_and_head(params, jnp.asarray([ids + padding]), jnp.asarray([[1] * len(ids) + padding]))
    logits = np.asarray(hidden[0], np.float64) @ np.asarray(head, np.float64)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[: len(ids)]


def test_a_continuation_is_as_likely_as_the_model_says(harness, params):
    rng = np.random.default_rng(0)
    pairs = [
        ([int(x) for x in rng.integers(256, size=n)], [int(x) for x in rng.integers(256, size=m)])
        for n, m in ((7, 3), (1, 1), (36, 5), (60, 4))
    ]
    greedy = int(logprobs(params, pairs[0][0])[-1].argmax())
    pairs.append((pairs[0][0], [greedy]))
    found = harness.likelihoods(pairs)
    for (before, after), one in zip(pairs, found, strict=True):
        ids = [*before, *after][-CONTEXT - 1 :]
        told = logprobs(params, ids[:-1])[-len(after) :]
        assert one.logprob == pytest.approx(sum(told[n, token] for n, token in enumerate(after)), abs=1e-3)
        assert one.greedy == (told.argmax(-1).tolist() == after)
    assert found[-1].greedy


def test_a_text_is_as_likely_as_its_windows(harness):
    short, long = "It sank.", "The whale sailed north while the captain slept, and the sea was calm."
    assert len(BYTES.encode(long)) > CONTEXT
    [one, two] = harness.rolling([short, long])
    [whole] = harness.likelihoods([([BYTES.eos_id], BYTES.encode(short).tolist())])
    assert one == pytest.approx(whole.logprob)
    pairs = windows_of(BYTES.encode(long).tolist(), BYTES.eos_id, CONTEXT)
    assert two == pytest.approx(sum(found.logprob for found in harness.likelihoods(pairs)))


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 20, 37])
def test_windows_predict_each_token_once_after_as_many_as_fit(length):
    ids = list(range(100, 100 + length))
    predicted = []
    for before, after in windows_of(ids, 7, 10):
        whole = [7, *ids]
        begin = len(predicted) + 1
        assert after == whole[begin : begin + len(after)]
        assert before == whole[begin - len(before) : begin]
        assert len(before) + len(after) == min(11, begin + len(after))
        predicted += after
    assert predicted == ids


def test_generation_goes_on_greedily_and_stops_where_it_is_told(harness, params):
    context = "The sea"
    [text] = harness.texts([(context, {"until": [], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0})])
    ids = BYTES.encode(context).tolist()
    for _ in range(6):
        ids.append(int(logprobs(params, ids)[-1, :].argmax()))
    assert text == BYTES.decode(ids[7 : ids.index(BYTES.eos_id) if BYTES.eos_id in ids else None])
    assert len(text) > 1
    [stopped] = harness.texts([(context, {"until": text[1], "max_gen_toks": 6})])
    assert stopped == text[: text.index(text[1])]
    with pytest.raises(UserError, match="num_beams"):
        harness.texts([(context, {"num_beams": 2})])
    with pytest.raises(UserError, match="max_gen_toks=40"):
        harness.texts([(context, {"max_gen_toks": 40})])


def test_a_chat_goes_through_the_models_template(harness):
    turns = [{"role": "user", "content": "Hi \x7f"}]
    assert BYTES.decode(harness.encode(spell_chat(turns))) == "You are a helpful assistant. USER: Hi \x7f ASSISTANT:"
    begun = [*turns, {"role": "assistant", "content": " It"}]
    text = BYTES.decode(harness.encode(spell_chat(begun) + " is"))
    assert text == "You are a helpful assistant. USER: Hi \x7f ASSISTANT: It is"


def test_the_package_asks_these(harness):
    pytest.importorskip("lm_eval")
    from ringworld.evaluate.lm_eval import make_model

    model = make_model(harness, "tiny")

    def request(*args: object) -> SimpleNamespace:
        return SimpleNamespace(args=args)

    [[logprob, greedy]] = model.loglikelihood([request("The sea", " was")], disable_tqdm=True)
    [own] = harness.likelihoods([(BYTES.encode("The sea").tolist(), BYTES.encode(" was").tolist())])
    assert (logprob, greedy) == (own.logprob, own.greedy)
    assert model.loglikelihood_rolling([request("It sank.")]) == harness.rolling(["It sank."])
    settings = {"until": [], "max_gen_toks": 4}
    assert model.generate_until([request("The sea", settings)]) == harness.texts([("The sea", settings)])
