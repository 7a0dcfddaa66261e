"""An evaluation stage: the weights of a training stage against those it started from, on held-out documents.

Inputs: `after` (the training stage), `before` (the one it started from, if any), `tokens`, `tokenizer`; of a chat
stage `conversations`, whose held-out ones it is asked; of a vision stage `vision` (its examples), `codes` (the clips
that they were made of) and `vqgan`.
Output: `evaluation.json`, `loss_by_position.png`, `loss_given_context.png`, `needle.png`, the folder `tasks` with every
prompt, reply and score of the long-context tasks; of a chat stage also `answers.png`, of a vision stage
`video_needle.png`, `samples.png`; of both `questions.jsonl`, `transcript.md`.
"""

from __future__ import annotations

import json

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join, read_if_there, read_json
from ringworld.evaluate.recipe import EvaluateInputs, EvaluateJob, EvaluateOptions, EvaluateRecipe
from ringworld.strict import from_mapping
from stages.process import run_module, written

CODE_VERSION = 1
FOLDER = "tasks"  # of `ringworld.evaluate.tasks.of_stage`

_PICTURES = (
    "loss_by_position.png", "needle.png", "loss_given_context.png", f"{FOLDER}/needles.png", "answers.png",
    "video_needle.png", "samples.png",
)  # fmt: skip
_ASKED = ("questions.jsonl", "transcript.md", f"{FOLDER}/summary.json")


def run(context: StageContext, recipe: EvaluateRecipe) -> Result:
    """Evaluate on a gang of hosts like the trainer's."""
    base = absolute(recipe.before_folder) if recipe.before_folder else None

    def given(port: str, artifact: str) -> str | None:
        return context.inputs[port].path(artifact) if port in context.inputs else None

    job = EvaluateJob(
        recipe=recipe,
        inputs=EvaluateInputs(
            tokens=context.inputs["tokens"].path("tokens"),
            tokenizer=context.inputs["tokenizer"].path("tokenizer"),
            after=context.inputs["after"].path("params"),
            before=given("before", "params") or base,
            output=context.attempt_dir,
            conversations=given("conversations", "tokens"),
            vision=given("vision", "tokens"),
            codes=given("codes", "codes"),
            vqgan=given("vqgan", "vqgan"),
        ),
        options=from_mapping(EvaluateOptions, dict(context.stage.placement.options), at="placement.options"),
    )
    path = join(context.attempt_dir, "job.yaml")
    job.save(path)

    def watch() -> None:
        progress = read_if_there(join(context.attempt_dir, "progress.json"))
        if progress is not None:
            context.report(**json.loads(progress), note="")

    run_module(context, "ringworld.evaluate", ["--recipe", path], watch=watch)
    figures = read_json(join(context.attempt_dir, "evaluation.json"))
    del figures["needle_prompts"]
    main = written(context.attempt_dir, "evaluation.json", *_PICTURES, *_ASKED, "job.yaml")
    # Cells are many, and who shows a run takes the first files of a stage.
    cells = [path for path in written(context.attempt_dir, FOLDER) if path not in main]
    return Result((*main, *cells), figures)
