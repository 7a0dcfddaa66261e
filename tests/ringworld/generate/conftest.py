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
from ringworld.model.layout import Layout
from ringworld.model.llama import bind, init_params
from ringworld.model.rope import make_rope
from ringworld.model.sharding import param_shardings

CONFIG = ModelConfig(
    vocabulary=272, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
    rope=RopeConfig(5e4),
)  # fmt: skip


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
        return model(tokens, positions, jnp.ones_like(positions), self.rope, layout) @ model.output_weights()[0]

    def logits(self, ids) -> np.ndarray:
        """[tokens, vocabulary], by one forward pass over all ids, padded so that few lengths are compiled."""
        padded = np.zeros((1, -(-len(ids) // 320) * 320), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(self._forward(self.params, padded))[0, : len(ids)]

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
def tied_model() -> Model:
    return Model(dataclasses.replace(CONFIG, tied_embeddings=True, num_kv_heads=4))
