"""Our Llama says what `transformers` says, weight for weight. Needs the `parity` extra (torch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.mesh import MeshSpec, make_mesh
from ringworld.model.config import RopeConfig
from ringworld.model.huggingface import load_llama, read_config
from ringworld.model.layout import Layout
from ringworld.model.llama import bind
from ringworld.model.rope import make_rope
from ringworld.model.sharding import placed_params

torch = pytest.importorskip("torch", reason="pip install .[parity]")
transformers = pytest.importorskip("transformers")

LONGEST = 600
SCALINGS = {
    "none": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", list(SCALINGS))
def test_logits_equal_transformers_on_the_same_folder(tmp_path, tied, scaling):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=311, hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, max_position_embeddings=2048,
        rope_parameters={"rope_theta": 50_000.0, **SCALINGS[scaling]},
    )  # fmt: skip
    peer = transformers.LlamaForCausalLM(config).eval()
    for weight in peer.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    peer.save_pretrained(tmp_path, safe_serialization=True)

    ours = read_config(str(tmp_path))
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    model = bind(ours, load_llama(str(tmp_path), ours, placed_params(ours, mesh)))
    stated = SCALINGS[scaling]
    rope = RopeConfig(50_000.0, scaling, stated.get("factor", 1.0), stated.get("original_max_position_embeddings", 0))  # type: ignore[arg-type]
    for length in (1, 7, LONGEST):
        tokens = np.random.default_rng(length).integers(0, 311, (1, length))
        with torch.no_grad():
            expected = peer(torch.tensor(tokens)).logits.numpy()
        hidden = model(
            jnp.asarray(tokens, jnp.int32),
            jnp.arange(length, dtype=jnp.int32)[None],
            jnp.ones((1, length), jnp.int32),
            make_rope(rope, ours.head_dim),
            Layout(mesh, jnp.dtype("float32")),
        )
        got = np.asarray(hidden @ model.output_weights()[0])
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max() + 1e-4
