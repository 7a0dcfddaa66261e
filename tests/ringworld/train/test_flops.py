"""Counted operations against an independent count: XLA's own, of a small dense model without scan."""

import jax
import jax.numpy as jnp
import pytest

from ringworld.model.config import ModelConfig
from ringworld.train.flops import device_peak_flops, matmul_parameters, training_flops


def test_a_forward_pass_written_out_costs_a_third_of_what_is_counted():
    config = ModelConfig(512, 1, 64, 4, 2, 16, 128)
    tokens = 256

    def forward(x, wq, wk, wv, wo, gate, up, down, head):
        q, k, v = x @ wq, x @ wk, x @ wv
        scores = q.reshape(tokens, 4, 16).swapaxes(0, 1) @ jnp.repeat(k.reshape(tokens, 2, 16), 2, 1).transpose(1, 2, 0)
        out = scores @ jnp.repeat(v.reshape(tokens, 2, 16), 2, 1).swapaxes(0, 1)
        x = out.swapaxes(0, 1).reshape(tokens, 64) @ wo
        return ((x @ gate) * (x @ up)) @ down @ head

    shapes = [(tokens, 64), (64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64), (64, 512)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    costs = jax.jit(forward).lower(*arguments).compile().cost_analysis()
    assert costs is not None
    counted = costs["flops"]
    assert training_flops(config, tokens, tokens * tokens) / 3 == pytest.approx(counted, rel=0.02)


def test_norms_and_the_embedding_lookup_are_no_products():
    tied = ModelConfig(512, 2, 64, 4, 2, 16, 128, tied_embeddings=True)
    untied = ModelConfig(512, 2, 64, 4, 2, 16, 128)
    assert matmul_parameters(tied) == matmul_parameters(untied) == 2 * (64 * 16 * 12 + 3 * 64 * 128) + 64 * 512


def test_a_processor_has_a_measured_peak():
    assert 1e8 < device_peak_flops(jax.devices()[0], jnp.dtype("float32")) < 1e14
