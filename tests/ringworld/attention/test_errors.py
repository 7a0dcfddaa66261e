"""What cannot work is refused while tracing: a ValueError that names the argument, its value and what is allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ringworld.attention import ring_attention

F32, I32 = jnp.float32, jnp.int32


def trace(**changed):
    """Traces a good call with some arguments changed; arrays are given as (dtype, *shape)."""
    arguments = {
        "q": (F32, 2, 8, 4, 16),
        "k": (F32, 2, 8, 2, 16),
        "v": (F32, 2, 8, 2, 16),
        "positions": (I32, 2, 8),
        "segments": (I32, 2, 8),
        "axis_name": None,
    } | changed
    arrays = {name: jax.ShapeDtypeStruct(x[1:], x[0]) for name, x in arguments.items() if isinstance(x, tuple)}
    others = {name: x for name, x in arguments.items() if not isinstance(x, tuple)}

    def call(arrays):
        return ring_attention(arrays.pop("q"), arrays.pop("k"), arrays.pop("v"), **arrays, **others)

    return jax.eval_shape(call, arrays)


def test_the_good_call_is_traced():
    assert trace().shape == (2, 8, 4, 16)
    assert (
        trace(q=(jnp.bfloat16, 2, 8, 4, 16), **dict.fromkeys("kv", (jnp.bfloat16, 2, 8, 2, 16))).dtype == jnp.bfloat16
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": (F32, 2, 8, 64)}, r"q has shape \(2, 8, 64\); it must be \[batch, tokens, heads, head_dim\]"),
        ({"k": (F32, 2, 0, 2, 16)}, r"k has shape \(2, 0, 2, 16\); .*none of them 0"),
        ({"v": (F32, 2, 8, 1, 16)}, r"v has shape \(2, 8, 1, 16\); it must be that of k, \(2, 8, 2, 16\)"),
        (dict.fromkeys("kv", (F32, 2, 8, 2, 8)), r"k has shape .*head_dim must be those of q, 2 and 16"),
        (dict.fromkeys("kv", (F32, 1, 8, 2, 16)), r"k has shape .*batch and head_dim must be those of q, 2 and 16"),
        (dict.fromkeys("kv", (F32, 2, 8, 3, 16)), r"k has 3 heads; the 4 heads of q must be a multiple"),
        (dict.fromkeys("qkv", (I32, 2, 8, 4, 16)), r"q has dtype int32; it must be one of float32, bfloat16, float16"),
        ({"v": (jnp.bfloat16, 2, 8, 2, 16)}, r"v has dtype bfloat16; it must be that of q, float32"),
        ({"positions": (F32, 2, 8)}, r"positions has dtype float32; it must be int32"),
        ({"segments": (jnp.int8, 2, 8)}, r"segments has dtype int8; it must be int32"),
        ({"positions": (I32, 2, 7)}, r"positions has shape \(2, 7\); it must be the batch and tokens of q, \(2, 8\)"),
        (
            dict.fromkeys("kv", (F32, 2, 9, 2, 16)),
            r"positions \(kv_positions is None\) has shape \(2, 8\).* of k, \(2, 9\)",
        ),
        (
            {"kv_segments": (I32, 2, 9)},
            r"kv_segments has shape \(2, 9\); it must be the batch and tokens of k, \(2, 8\)",
        ),
        ({"axis_name": "rign"}, r"axis_name='rign' is not a mesh axis here; it must be None or a mesh axis"),
        ({"scale": 0.0}, r"scale=0.0; it must be a positive, finite"),
        ({"scale": float("nan")}, r"scale=nan; it must be a positive, finite"),
        ({"soft_cap": -1.0}, r"soft_cap=-1.0; it must be a positive, finite"),
        ({"window": 0}, r"window=0; it must be 1 position or more, or None"),
        ({"window": 4, "sinks": -1}, r"sinks=-1; it must be 0 positions or more"),
        ({"sinks": 2}, r"sinks=2 without a window: .*it must be 0, or give window"),
        ({"block_q": 9}, r"block_q=9; it must be from 1 to the shard's 8 tokens"),
        ({"block_kv": 0}, r"block_kv=0; it must be from 1 to the shard's 8 tokens"),
        ({"block_kv": 4.0}, r"block_kv=4.0; it must be from 1 to the shard's 8 tokens"),
        ({"backend": "cudnn"}, r"backend='cudnn' is unknown; it must be one of auto, xla"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        trace(**changed)


def test_ulysses_refuses_an_unknown_axis_and_heads_that_it_cannot_deal():
    with pytest.raises(ValueError, match=r"ulysses_axis='nodes' is not a mesh axis here"):
        trace(ulysses_axis="nodes")

    mesh = Mesh(np.array(jax.devices()[:3]), ("u",))
    spec = PartitionSpec(None, "u")

    def attend(q, k, v, positions, segments):
        return ring_attention(q, k, v, positions=positions, segments=segments, ulysses_axis="u", axis_name=None)

    with pytest.raises(ValueError, match=r"q has 4 heads; with 2 key heads over u=3 they must be a multiple of 6"):
        jax.eval_shape(
            jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 5, out_specs=spec, check_vma=False),
            *(jax.ShapeDtypeStruct((1, 6, heads, 16), F32) for heads in (4, 2, 2)),
            *(jax.ShapeDtypeStruct((1, 6), I32),) * 2,
        )
