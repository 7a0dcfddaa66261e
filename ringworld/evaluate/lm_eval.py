"""`python -m ringworld.evaluate.lm_eval`: tasks of EleutherAI's harness on any checkpoint, split over a mesh.

Needs the extra `lm_eval`: pip install '.[lm_eval]'. Writes results.json, and with --samples every request and reply.
Exit codes: see `ringworld.command`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ringworld.command import guarded
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.generate.flags import add_model_flags, opened_sampler

if TYPE_CHECKING:
    from ringworld.evaluate.harness import Harness


def main(arguments: list[str]) -> int:
    """Parse, evaluate, write. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ringworld.evaluate.lm_eval", description=__doc__)
    add_model_flags(parser)
    parser.add_argument("--tasks", required=True, help="of the harness, with commas")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--include-path", metavar="DIR", help="more tasks, as YAML")
    parser.add_argument("--metadata", default="{}", metavar="JSON", help='as in {"max_seq_lengths": [4096]} for RULER')
    parser.add_argument("--apply-chat-template", action="store_true")
    parser.add_argument("--samples", action="store_true", help="keep every request and reply")
    parser.add_argument("--slots", type=int, default=4, help="requests that are answered at a time")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    try:
        package, utils = import_module("lm_eval"), import_module("lm_eval.utils")
        manager_of = import_module("lm_eval.tasks").TaskManager
    except ImportError as missing:
        raise UserError(f"{missing}: install it, as in pip install '.[lm_eval]'") from None
    from ringworld.evaluate.harness import Harness
    from ringworld.generate.chat import Prompts
    from ringworld.generate.checkpoint import open_checkpoint

    try:
        metadata = json.loads(options.metadata)
    except ValueError as wrong:
        raise UserError(f"--metadata {options.metadata}: {wrong}; give a JSON object") from wrong
    checkpoint = open_checkpoint(options.checkpoint, options.tokenizer)
    context = options.context or checkpoint.context
    manager = manager_of(include_path=options.include_path, metadata=metadata)
    names = options.tasks.split(",")
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise UserError(f"--tasks {','.join(unknown)}: unknown to lm_eval; `lm_eval ls tasks` names them")
    sampler = opened_sampler(checkpoint, options, options.slots, context + 1)
    harness = Harness(sampler, Prompts(checkpoint), context, checkpoint.tokenizer.eos_id)
    found = package.simple_evaluate(
        model=make_model(harness, checkpoint.name), tasks=names, limit=options.limit, task_manager=manager,
        num_fewshot=options.num_fewshot, apply_chat_template=options.apply_chat_template, log_samples=options.samples,
        bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "results.json"), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, default=utils.handle_non_serializable, ensure_ascii=False)
    print(utils.make_table(found))
    return DONE


def make_model(harness: Harness, name: str) -> Any:
    """The model as the harness knows one: an `lm_eval.api.model.TemplateLM`."""
    from ringworld.evaluate.harness import spell_chat

    base: Any = import_module("lm_eval.api.model").TemplateLM

    class Ringworld(base):
        tokenizer_name = name

        @property
        def eot_token_id(self) -> int:
            return harness.end

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return harness.encode(string, begun=add_special_tokens is not False).tolist()

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            found = harness.likelihoods([(before, after) for _, before, after in requests])
            return [(one.logprob, one.greedy) for one in found]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return harness.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return harness.texts([request.args for request in requests])

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return spell_chat(chat_history)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return ""

    return Ringworld()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
