"""Logits of random models of every family against `transformers`, both ways, on the CPU in float32.

    pip install '.[parity]'
    python benchmarks/parity.py [--tokens 1 7 4097] [--cases llama-2 qwen3]

Into ours: transformers writes a folder, Ringworld reads it, and both compute the same tokens. Into theirs: what
Ringworld has read it writes, transformers reads that, and its weights and logits are compared with the first peer's.
Weights have the sizes that training leaves: activations and logits near 1, norms and biases that are no ones and zeros.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from ringworld.data.files import write_json
from ringworld.huggingface.config_json import config_json, read_stated
from ringworld.huggingface.read import load_folder
from ringworld.huggingface.write import write_weights
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.layout import Layout
from ringworld.model.llama import Params, bind
from ringworld.model.rope import make_rope
from ringworld.model.sharding import placed_params

_SIZES: Mapping[str, Any] = {
    "vocab_size": 310, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 2048}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-2": ("llama", {"num_key_value_heads": 4, "rope_parameters": _PLAIN}),
    "llama-3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama-3.2, tied": ("llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama, linear": ("llama", {"rope_parameters": {**_PLAIN, "rope_type": "linear", "factor": 4.0}}),
    "mistral": ("mistral", {"rope_parameters": {**_PLAIN, "rope_theta": 1e6}, "head_dim": 24, "sliding_window": None}),
    "qwen2.5": ("qwen2", {"rope_parameters": {**_PLAIN, "rope_theta": 1e6}, "rms_norm_eps": 1e-6}),
    "qwen2.5, yarn, tied": ("qwen2", {"rope_parameters": _YARN, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"rope_parameters": {**_PLAIN, "rope_theta": 1e6}, "head_dim": 32}),
}


@dataclass(frozen=True)
class Parity:
    """largest: of the peer's logits. into_ours, into_theirs: the largest absolute difference of a logit."""

    tokens: int
    largest: float
    into_ours: float
    into_theirs: float


def random_peer(model_type: str, told: Mapping[str, Any]) -> Any:
    """A random model of transformers; two of the same arguments are the same."""
    import torch  # pyright: ignore[reportMissingImports] (an extra)
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**_SIZES, **told})).eval()
    with torch.no_grad():
        for name, weight in peer.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.5)
            elif weight.ndim == 1:
                weight.normal_(mean=1.0, std=0.2)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    return peer


def logits_of(config: ModelConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    """Ours, float32 [1, tokens, vocabulary]."""
    mesh = make_mesh(parse_mesh("data=1"), jax.devices()[:1])

    @jax.jit
    def run(params: Params, tokens: jax.Array) -> jax.Array:
        model = bind(config, params)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        rope, layout = make_rope(config.rope, config.head_dim), Layout(mesh, jnp.dtype("float32"))
        return model(tokens, positions, jnp.ones_like(positions), rope, layout) @ model.output_weights()[0]

    return np.asarray(run(params, jnp.asarray(tokens, jnp.int32)))


def compare(case: str, folder: Path, lengths: Sequence[int]) -> Iterator[Parity]:
    """One for each length. ValueError where a weight of theirs does not come back from ours bit for bit."""
    import torch  # pyright: ignore[reportMissingImports] (an extra)
    from transformers import AutoModelForCausalLM

    peer = random_peer(*CASES[case])
    peer.save_pretrained(folder / "theirs")
    stated = read_stated(str(folder / "theirs"))
    config, mesh = stated.model, make_mesh(parse_mesh("data=1"), jax.devices()[:1])
    params = load_folder(str(folder / "theirs"), config, placed_params(config, mesh))
    write_ours(str(folder / "ours"), config, params, stated.context)
    again = AutoModelForCausalLM.from_pretrained(folder / "ours").eval()
    for name, weight in peer.state_dict().items():
        if not torch.equal(weight, again.state_dict()[name]):
            raise ValueError(f"{case}: {name} came back changed")
    for length in lengths:
        tokens = np.random.default_rng(length).integers(0, config.vocabulary, (1, length))
        with torch.no_grad():
            expected, echoed = (model(torch.tensor(tokens)).logits.numpy() for model in (peer, again))
        ours = logits_of(config, params, tokens)
        yield Parity(
            tokens=length,
            largest=float(np.abs(expected).max()),
            into_ours=float(np.abs(ours - expected).max()),
            into_theirs=float(np.abs(echoed - expected).max()),
        )


def write_ours(folder: str, config: ModelConfig, params: Params, context: int) -> None:
    """Weights in memory as a folder without a tokenizer."""

    def read(name: str, start: int, stop: int) -> np.ndarray:
        leaf: Any = params
        for key in name.split("."):
            leaf = leaf[key]
        return np.asarray(leaf[start:stop] if stop else leaf)

    write_weights(folder, config, read, "F32")
    write_json(f"{folder}/config.json", config_json(config, context, "float32", None, [2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 7, 4097])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    print("| family | tokens | largest logit | into ours | into theirs |\n|---|--:|--:|--:|--:|")
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            for found in compare(case, Path(folder), options.tokens):
                print(
                    f"| {case} | {found.tokens:,} | {found.largest:.2f} | {found.into_ours:.1e} | "
                    f"{found.into_theirs:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
