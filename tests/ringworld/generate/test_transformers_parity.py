"""Greedy answers equal those of `transformers`, token for token. Needs the `parity` extra (torch)."""

import jax
import numpy as np
import pytest

from ringworld.generate.checkpoint import open_checkpoint
from ringworld.generate.engine import Request
from ringworld.generate.sampler import open_sampler
from ringworld.mesh import make_mesh, parse_mesh

torch = pytest.importorskip("torch", reason="pip install .[parity]")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 2, 17, 512, 513, 3000)
SCALINGS = {
    "none": {"rope_type": "default"},
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "linear": {"rope_type": "linear", "factor": 4.0},
}  # fmt: skip


def random_folder(folder: str, scaling: str, tied: bool):
    """A random Llama, saved with a tokenizer that transformers writes; the peer that reads it."""
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=312, hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, max_position_embeddings=4096,
        rope_parameters={"rope_theta": 50_000.0, **SCALINGS[scaling]},
    )  # fmt: skip
    peer = transformers.LlamaForCausalLM(config).eval()
    for weight in peer.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    peer.generation_config.eos_token_id = None  # it goes on to the last token
    peer.save_pretrained(folder, safe_serialization=True)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(310)} | {"<end>": 310}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    return peer


@pytest.mark.parametrize(
    ("scaling", "tied", "mesh", "lengths"),
    [
        ("none", False, "data=1", LENGTHS),
        ("none", True, "ring=2,tensor=2", (1, 513)),
        ("llama3", False, "data=1", (1000,)),
        ("yarn", True, "data=1", (1000,)),
        ("linear", False, "ring=4", (1000,)),
    ],
)
def test_greedy_answers_equal_transformers(tmp_path, scaling, tied, mesh, lengths):
    peer = random_folder(str(tmp_path), scaling, tied)
    devices = int(np.prod([max(1, size) for size in parse_mesh(mesh).sizes().values()]))
    sampler = open_sampler(
        open_checkpoint(str(tmp_path)), make_mesh(parse_mesh(mesh), jax.devices()[:devices]), slots=4, chunk=512
    )
    prompts = {n: np.random.default_rng(n).integers(0, 310, n).astype(np.int32) for n in lengths}
    tickets = {sampler.engine.submit(Request(ids, 64)): n for n, ids in prompts.items()}
    got: dict[int, list[int]] = {n: [] for n in lengths}
    while sampler.engine.busy:
        for event in sampler.engine.step():
            if event.token is not None:
                got[tickets[event.ticket]].append(event.token)
    for length, ids in prompts.items():
        with torch.no_grad():
            expected = peer.generate(
                torch.tensor(ids[None].astype(np.int64)), do_sample=False, max_new_tokens=64, pad_token_id=0
            )
        assert got[length] == expected[0, length:].tolist(), f"after {length} tokens"
