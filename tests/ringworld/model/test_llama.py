"""The model against a plain float64 Llama in numpy that shares no code with it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.mesh import MeshSpec, make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import init_params
from ringworld.model.layout import Layout
from ringworld.model.llama import abstract_params, bind, count_parameters, parameter_dims
from ringworld.model.memory import Memory
from ringworld.model.rope import make_rope
from ringworld.model.sharding import check
from tests.thorough import thorough

CONFIG = ModelConfig(
    vocabulary=98, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48, rope=RopeConfig(5e4)
)
BOTH = replace(CONFIG, qkv_biases=True, head_norms=True)


def run(config, params, tokens, positions, segments, mesh=None, memory=None):
    mesh = mesh or make_mesh(MeshSpec(), jax.devices()[:1])
    tokens, positions, segments = (jnp.asarray(x, jnp.int32) for x in (tokens, positions, segments))
    model = bind(config, params)
    rope = make_rope(config.rope, config.head_dim)
    layout = Layout(mesh, jnp.dtype("float32"), memory or Memory())
    return np.asarray(model(tokens, positions, segments, rope, layout))


def by_hand(config: ModelConfig, params, tokens: np.ndarray) -> np.ndarray:
    """Hidden states [tokens, embed] of one document, float64, one token and one head at a time where it is simplest."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def turn(x):  # [tokens, head_dim]
        half = config.head_dim // 2
        angle = np.arange(len(x))[:, None] * config.rope.theta ** -(np.arange(half) / half)
        as_complex = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([as_complex.real, as_complex.imag], -1)

    x = p["embedding"][tokens]
    group = config.num_heads // config.num_kv_heads
    for n in range(config.num_layers):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], p["layers"])
        h = norm(x, layer["attention"]["norm"])

        def projected(name, head, layer=layer["attention"], h=h):
            found = h @ layer[name][:, head]
            return found + layer[f"{name}_bias"][head] if config.qkv_biases else found

        def normed(name, head, layer=layer["attention"], projected=projected):
            found = projected(name, head)
            return turn(norm(found, layer[f"{name}_norm"]) if config.head_norms else found)

        for head in range(config.num_heads):
            q, k = normed("query", head), normed("key", head // group)
            v = projected("value", head // group)
            scores = q @ k.T / np.sqrt(config.head_dim) + np.triu(np.full((len(x), len(x)), -np.inf), 1)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + (weights / weights.sum(-1, keepdims=True)) @ v @ layer["attention"]["output"][head]
        h = norm(x, layer["mlp"]["norm"])
        gate = h @ layer["mlp"]["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["mlp"]["up"])) @ layer["mlp"]["down"]
    return norm(x, p["norm"])


@pytest.fixture(scope="module")
def params():
    loud = jax.tree.map(lambda leaf: leaf * 5, init_params(CONFIG, jax.random.key(0)))  # so that every part matters
    return loud


@pytest.fixture(scope="module")
def both(params):
    """Weights of BOTH: those of CONFIG, and biases and norms of heads that are no zeros and ones."""
    rng, fresh = np.random.default_rng(5), init_params(BOTH, jax.random.key(0))["layers"]["attention"]
    added = {
        name: jnp.asarray(leaf + rng.normal(0, 0.5, leaf.shape), jnp.float32)
        for name, leaf in fresh.items()
        if name not in params["layers"]["attention"]
    }
    assert set(added) == {"query_bias", "key_bias", "value_bias", "query_norm", "key_norm"}
    return {**params, "layers": {**params["layers"], "attention": {**params["layers"]["attention"], **added}}}


def test_a_document_is_computed_as_by_hand(params):
    tokens = np.random.default_rng(0).integers(0, 97, (1, 40))
    got = run(CONFIG, params, tokens, np.arange(40)[None], np.ones((1, 40)))
    np.testing.assert_allclose(got[0], by_hand(CONFIG, params, tokens[0]), rtol=1e-4, atol=1e-4)


def test_packed_documents_do_not_see_each_other(params):
    lengths, rng = [7, 1, 20, 12], np.random.default_rng(1)
    documents = [rng.integers(0, 97, n) for n in lengths]
    tokens = np.concatenate(documents)[None]
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    segments = np.repeat(np.arange(1, 5), lengths)[None]
    got = run(CONFIG, params, tokens, positions, segments)[0]
    expected = np.concatenate([by_hand(CONFIG, params, document) for document in documents])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mesh", "memory"),
    [
        ("fsdp=1", Memory()),
        thorough("tensor=2,ring=2", Memory()),
        ("ulysses=2,ring=2", Memory(head_groups=2)),
        thorough("data=2,fsdp=2", Memory(chunk=4)),
    ],
)
def test_biases_and_norms_of_heads_are_computed_as_by_hand_on_every_mesh(both, mesh, memory):
    tokens = np.random.default_rng(6).integers(0, 97, (4, 16))
    spec = parse_mesh(f"fsdp=1,{mesh}" if "fsdp" not in mesh else mesh)
    shards = make_mesh(spec, jax.devices()[: int(np.prod(list(spec.sizes().values())))])
    got = run(BOTH, both, tokens, np.tile(np.arange(16), (4, 1)), np.ones((4, 16)), shards, memory)
    for row in (0, 3):
        np.testing.assert_allclose(got[row], by_hand(BOTH, both, tokens[row]), rtol=1e-3, atol=2e-4)


def test_switches_that_are_off_leave_the_tree_and_the_draws_as_they_are(params):
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(CONFIG))
    assert set(shapes["layers"]["attention"]) == {"norm", "query", "key", "value", "output"}
    drawn = init_params(BOTH, jax.random.key(0))["layers"]["attention"]["query"]
    np.testing.assert_array_equal(drawn * 5, params["layers"]["attention"]["query"])


@pytest.mark.parametrize(
    ("config", "mesh"), [(CONFIG, "fsdp=1"), thorough(CONFIG, "tensor=2,ring=2"), (BOTH, "tensor=2,ring=2")], ids=str
)
def test_the_gradient_is_the_slope_of_the_model_by_hand(params, both, config, mesh):
    """Along a random direction of each weight, against central differences in float64."""
    params = both if config == BOTH else params
    rng, tokens = np.random.default_rng(3), np.random.default_rng(4).integers(0, 97, (1, 16))
    readout = rng.standard_normal((16, CONFIG.embed_dim))
    spec = parse_mesh(f"fsdp=1,{mesh}" if "fsdp" not in mesh else mesh)
    shards = make_mesh(spec, jax.devices()[: int(np.prod(list(spec.sizes().values())))])
    places = [jnp.asarray(x, jnp.int32) for x in (tokens, np.arange(16)[None], np.ones((1, 16)))]

    def loss(params):
        rope = make_rope(config.rope, config.head_dim)
        hidden = bind(config, params)(places[0], places[1], places[2], rope, Layout(shards, jnp.dtype("float32")))
        return (hidden[0] * readout).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    for index, slope in enumerate(jax.tree.leaves(gradient)):
        direction = rng.standard_normal(leaves[index].shape)
        ends = []
        for sign in (1, -1):
            moved = [leaf + sign * 1e-5 * direction if n == index else leaf for n, leaf in enumerate(leaves)]
            ends.append((by_hand(config, jax.tree.unflatten(tree, moved), tokens[0]) * readout).sum())
        expected = (ends[0] - ends[1]) / 2e-5
        assert float((np.asarray(slope, np.float64) * direction).sum()) == pytest.approx(expected, rel=2e-3, abs=2e-2)


@pytest.mark.parametrize(
    "mesh", ["tensor=2,ring=2", *map(thorough, ("fsdp=4", "ring=4", "ulysses=2,ring=2", "data=2,tensor=2"))]
)
def test_every_mesh_gives_the_same_hidden_states(params, mesh):
    tokens = np.random.default_rng(2).integers(0, 97, (4, 32))
    positions, segments = np.tile(np.arange(32), (4, 1)), np.ones((4, 32))
    expected = run(CONFIG, params, tokens, positions, segments)
    shards = make_mesh(parse_mesh(mesh), jax.devices()[:4])
    np.testing.assert_allclose(run(CONFIG, params, tokens, positions, segments, shards), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, BOTH, replace(CONFIG, tied_embeddings=True)], ids=str)
def test_every_parameter_has_a_name_for_each_dimension(config):
    shapes, dims = abstract_params(config), parameter_dims(config)
    pairs = jax.tree.map(
        lambda names, leaf: len(names) == leaf.ndim, dims, shapes, is_leaf=lambda node: isinstance(node, tuple)
    )
    assert all(jax.tree.leaves(pairs))
    assert count_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("mesh", "vocabulary", "said"),
    [("tensor=2", 97, "vocabulary=97"), ("tensor=2,ring=3", 98, "embed_dim=32"), ("ulysses=8", 98, "ulysses=8")],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(mesh, vocabulary, said):
    with pytest.raises(UserError, match=said):
        check(replace(CONFIG, vocabulary=vocabulary), parse_mesh(f"fsdp=1,{mesh}").sizes())
