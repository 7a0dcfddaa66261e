"""A small model with loud weights, so that every part of it matters, and a sampler's parts on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.generate.engine import Engine
from ringworld.generate.programs import Programs
from ringworld.generate.sampler import Sampler
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import init_params
from ringworld.model.layout import Layout
from ringworld.model.llama import bind
from ringworld.model.rope import make_rope
from ringworld.model.sharding import param_shardings
from ringworld.vision.codec import Codec
from ringworld.vision.config import VQConfig
from ringworld.vision.vqgan import init_params as init_vqgan
from ringworld.vision.vqgan_import import write_vqgan

CONFIG = ModelConfig(
    vocabulary=272, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
    rope=RopeConfig(5e4),
)  # fmt: skip

# 16 pixels of a side, 4 x 4 codes of 16.
VQGAN = VQConfig(16, (8, 8, 8), blocks=1, latent=4, code_dim=4, codebook=16, groups=4)


class Model:
    """The model under test, and what `ringworld.model` says of it without a cache."""

    def __init__(self, config: ModelConfig = CONFIG) -> None:
        self.config = config
        self.params = jax.tree.map(lambda leaf: leaf * 5, init_params(config, jax.random.key(0)))
        self.rope = make_rope(config.rope, config.head_dim)
        self._one = make_mesh(parse_mesh("data=1"), jax.devices()[:1])
        self._forward = jax.jit(self._hidden)
        self._programs: dict[tuple[str, str], Programs] = {}
        self._greedy: dict[bytes, list[int]] = {}

    def _hidden(self, params, tokens):
        model = bind(self.config, params)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        layout = Layout(self._one, jnp.dtype("float32"))
        hidden = model(tokens, positions, jnp.ones_like(positions), self.rope, layout)
        return [hidden @ weights for weights in model.output_weights()]

    def logits(self, ids, vocabulary: int = 0) -> np.ndarray:
        """[tokens, vocabulary], by one forward pass over all ids, padded so that few lengths are compiled.

        vocabulary: 0: of text, 1: of vision.
        """
        padded = np.zeros((1, -(-len(ids) // 320) * 320), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(self._forward(self.params, padded)[vocabulary])[0, : len(ids)]

    def greedy(self, ids, count: int) -> list[int]:
        """What greedy decoding gives, by a forward pass over everything for each token."""
        known = self._greedy.setdefault(np.asarray(ids, np.int32).tobytes(), [])
        while len(known) < count:
            known.append(int(self.logits([*ids, *known])[-1].argmax()))
        return known[:count]

    def programs(self, mesh: str = "data=1", dtype: str = "float32") -> Programs:
        if (mesh, dtype) not in self._programs:
            sizes = parse_mesh(mesh).sizes()
            devices = int(np.prod([max(1, size) for size in sizes.values()]))
            built = make_mesh(parse_mesh(mesh), jax.devices()[:devices])
            params = jax.device_put(self.params, param_shardings(self.config, built))
            self._programs[mesh, dtype] = Programs(self.config, params, self.rope, built, dtype)
        return self._programs[mesh, dtype]

    def engine(self, mesh: str = "data=1", *, slots=4, context=300, chunk=64, dtype="float32") -> Engine:
        return Engine(self.programs(mesh, dtype), slots=slots, context=context, chunk=chunk)

    def sampler(self, **sizes) -> Sampler:
        tokenizer = ByteTokenizer()
        return Sampler(self.engine(**sizes), tokenizer, frozenset({tokenizer.eos_id}))


@pytest.fixture(scope="session")
def model() -> Model:
    return Model()


@pytest.fixture(scope="session")
def seeing() -> Model:
    """A model that sees: 16 codes, eof, eov and spare ids."""
    return Model(dataclasses.replace(CONFIG, vision_vocabulary=24))


@pytest.fixture(scope="session")
def vqgan(tmp_path_factory) -> str:
    """A folder with a VQGAN of random weights."""
    folder = str(tmp_path_factory.mktemp("vqgan"))
    write_vqgan(folder, VQGAN, init_vqgan(VQGAN, 1))
    return folder


@pytest.fixture(scope="session")
def codec() -> Codec:
    """The same VQGAN, in the batches of `ringworld.generate.sight`."""
    return Codec(VQGAN, init_vqgan(VQGAN, 1), 8)


@pytest.fixture(scope="session")
def biased_model() -> Model:
    """Biases of queries, keys and values, and norms of heads, that are no zeros and ones."""
    found = Model(dataclasses.replace(CONFIG, qkv_biases=True, head_norms=True))
    rng, attention = np.random.default_rng(7), found.params["layers"]["attention"]
    for name in ("query_bias", "key_bias", "value_bias", "query_norm", "key_norm"):
        attention[name] = jnp.asarray(rng.normal(0.5, 1, attention[name].shape), jnp.float32)
    return found


@pytest.fixture(scope="session")
def tied_model() -> Model:
    return Model(dataclasses.replace(CONFIG, tied_embeddings=True, num_kv_heads=4))
