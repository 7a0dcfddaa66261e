"""What a training step costs in floating-point operations, and what the device could do: their ratio is the MFU.

Model FLOPs are counted, not measured: operations that the mathematics needs, without recomputation (PaLM, appendix B,
arXiv 2204.02311), and with attention counted over the pairs that the mask lets through, not over the whole square.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from ringworld.model.config import ModelConfig

# Dense bf16 peak of one device as jax counts devices, operations per second, by a part of its device_kind; vendors'
# data sheets. A v4 or v5p device is a whole chip (two cores).
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("v6", 918e12),
    ("v5p", 459e12),
    ("v5", 197e12),
    ("v4", 275e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("A100", 312e12),
)


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that take part in a matrix product for every token: all but norms, biases and the embedding lookup.

    Of a model with two vocabularies both projections: tokens of both lie among each other, so that a chunk of them
    meets both."""
    attention = config.embed_dim * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    mlp = 3 * config.embed_dim * config.mlp_dim
    return config.num_layers * (attention + mlp) + config.embed_dim * (config.vocabulary + config.vision_vocabulary)


def training_flops(config: ModelConfig, tokens: int, attention_pairs: int) -> float:
    """Forward and backward of `tokens` tokens whose mask lets `attention_pairs` query-key pairs through."""
    # A pair costs 2 products of head_dim in the forward pass and twice that in the backward pass.
    per_pair = 3 * 2 * 2 * config.head_dim * config.num_heads * config.num_layers
    return 6.0 * matmul_parameters(config) * tokens + float(per_pair) * attention_pairs


def device_peak_flops(device: Any, dtype: Any) -> float:
    """Peak operations per second of one device: from the table, or for a CPU the measured rate of a matrix product."""
    for name, peak in PEAK_FLOPS:
        if name.lower() in device.device_kind.lower():
            return peak if dtype == jnp.bfloat16 else peak / 2
    return _measured_rate(device, dtype)


def _measured_rate(device: Any, dtype: Any, size: int = 1536, runs: int = 4) -> float:
    matrix = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda x: x @ x)
    product(matrix).block_until_ready()
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
