"""Every family says what `transformers` says, and comes back there unchanged. Needs the `parity` extra (torch)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install .[parity]")
transformers = pytest.importorskip("transformers")

from benchmarks.parity import CASES, compare  # noqa: E402 (what it needs may be absent)
from ringworld.model.config import RopeConfig  # noqa: E402
from ringworld.model.rope import make_rope  # noqa: E402


@pytest.mark.parametrize("case", list(CASES))
def test_logits_equal_transformers_both_ways(tmp_path, case):
    found = list(compare(case, tmp_path, (1, 7, 4097)))
    assert [parity.tokens for parity in found] == [1, 7, 4097]
    for parity in found:
        assert parity.largest > 2
        assert parity.into_ours < 1e-4
        assert parity.into_theirs == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "length"),
    [
        (RopeConfig(5e5), {"rope_type": "default"}, None),
        (RopeConfig(5e5, "linear", 4.0), {"rope_type": "linear", "factor": 4.0}, None),
        # transformers' base at 16,384 tokens of 4,096, with a factor of 2: 2 * 4 - 1 = 7 times the first context.
        (RopeConfig(5e5, "ntk", 7.0), {"rope_type": "dynamic", "factor": 2.0}, 16_384),
        (
            RopeConfig(5e5, "yarn", 4.0, 1024),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
            None,
        ),
        (
            RopeConfig(5e5, "yarn", 4.0, 1024, 24.0, 2.0, attention_factor=1.5),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 24.0,
             "beta_slow": 2.0, "attention_factor": 1.5},
            None,
        ),
        (
            RopeConfig(5e5, "llama3", 8.0, 1024),
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 1024},
            None,
        ),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_frequencies_equal_transformers(ours, theirs, length):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 5e5, **theirs},
    )
    rope = make_rope(ours, 128)
    if theirs["rope_type"] == "default":
        frequencies, magnitude = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq, 1.0
    else:
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu", seq_len=length)
    np.testing.assert_allclose(rope.frequencies, frequencies.numpy(), rtol=1e-6)
    assert float(rope.magnitude) == pytest.approx(magnitude, rel=1e-6)
