"""The side of transformers in benchmarks/generate.py and needle_grid.py: the same Llama on torch, its own cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports] (an extra)
import transformers

from benchmarks.worker import serve, timed


class Side:
    """One model, made here at random and saved for the other side."""

    def __init__(self) -> None:
        self._model: Any = None

    def make(self, request: dict[str, Any]) -> dict[str, Any]:
        torch.manual_seed(0)
        sizes = request["sizes"]
        config = transformers.LlamaConfig(
            vocab_size=sizes["vocabulary"], hidden_size=sizes["embed"], intermediate_size=sizes["mlp"],
            num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["kv_heads"], max_position_embeddings=32768,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        self._model = transformers.LlamaForCausalLM(config).eval()
        self._model.save_pretrained(request["folder"], safe_serialization=True)
        return {"parameters": sum(weight.numel() for weight in self._model.parameters())}

    def threads(self, request: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(request["count"])
        return {}

    def prefill(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds to read a prompt and to choose the token after it; logits of the last place alone, as generate()."""
        prompt = self._prompt(1, request["tokens"])
        with torch.inference_mode():
            return timed(
                lambda: self._model(input_ids=prompt, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
            )

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a greedy step, which draws a token for each of `batch` rows after prompts of `past` tokens."""
        with torch.inference_mode():
            out = self._model(
                input_ids=self._prompt(request["batch"], request["past"]), use_cache=True, logits_to_keep=1
            )
            cache, newest = out.past_key_values, out.logits[:, -1:].argmax(-1)

            def step() -> None:
                nonlocal newest
                newest = self._model(input_ids=newest, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

            step()
            told = timed(lambda: [step() for _ in range(request["steps"])])
            return {name: seconds / request["steps"] for name, seconds in told.items()}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds to answer prompts one after the other by generate(); the ids go into a file, int64 [prompts, new]."""
        new, found = request["new"], []
        with np.load(request["prompts"]) as held:
            prompts = [torch.from_numpy(held[name].astype(np.int64))[None] for name in held]

        def run() -> None:
            found.clear()
            for prompt in prompts:
                seen = torch.ones_like(prompt)
                out = self._model.generate(
                    input_ids=prompt, attention_mask=seen, max_new_tokens=new, min_new_tokens=new, do_sample=False,
                    pad_token_id=0,
                )  # fmt: skip
                found.append(out[0, prompt.shape[1] :].numpy())

        with torch.inference_mode():
            told = timed(run)
        np.save(request["answers"], np.stack(found))
        return told

    def _prompt(self, rows: int, tokens: int) -> Any:
        return torch.randint(0, self._model.config.vocab_size, (rows, tokens))


if __name__ == "__main__":
    side = Side()
    serve({name: getattr(side, name) for name in ("make", "threads", "prefill", "decode", "answer")})
