"""What a curriculum needs on a placement, before anybody pays: memory, time and money of every training stage.

    python flows/plan.py curriculum=lwm_7b placement=v4_512 aot=true
    python flows/plan.py curriculum=lwm_7b placement=h100x8 search=true price=3.5
    python flows/plan.py curriculum=llama3_8b_longest placement=v5p_8 only=text-3840k aot=true json=plan.json

Nothing runs and nothing is written but the cache of the compiler's answers and json=FILE.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flows.arguments import PLAN_HELP, PlanArguments, parse_as
from flows.plan_rows import Planner, Row, compile_rows, summary
from flows.plan_table import print_proposals, print_rows
from infra.errors import UserError
from infra.redact import redact_text
from infra.stage import Stage
from infra.storage import Store
from ringworld import errors
from ringworld.planning.aot import Compiled, cache_folder
from ringworld.train.recipe import TrainRecipe
from stages.graph import build


def main(words: Sequence[str]) -> int:
    """Print the plan; 0: all fits, 1: something does not, 2: it cannot work as given, 130: interrupted."""
    if {"-h", "--help", "help"} & set(words):
        print(PLAN_HELP, end="")
        return 0
    try:
        return run(words)
    except (UserError, errors.UserError) as error:
        print(f"error: {redact_text(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: answers of the compiler so far are kept", file=sys.stderr)
        return 130


def run(words: Sequence[str]) -> int:
    """Estimate every training stage, search and compile if asked, print."""
    flow = parse_as(PlanArguments, words)
    chosen = flow.arguments
    planner = Planner(chosen, Store(chosen.root, chosen.run_name))
    rows = [planner.row(stage) for stage in training_stages(build(flow.curriculum, flow.site), chosen.only)]
    if chosen.search:
        rows = searched(planner, rows, compiling=chosen.aot)
    elif chosen.aot:
        rows = compiled(rows)
    print_rows(rows, chosen.price, sys.stdout)
    if chosen.search:
        print_proposals(rows, sys.stdout)
    if chosen.json:
        _write_json(chosen.json, rows, chosen)
    return 1 if any(row.fits is False for row in rows) else 0


def training_stages(stages: Sequence[Stage], only: str | None) -> list[Stage]:
    """Those that train, or the one of them that is asked for."""
    training = [stage for stage in stages if isinstance(stage.recipe, TrainRecipe)]
    found = [stage for stage in training if only in (None, stage.name)]
    if not found:
        raise UserError(f"only={only}: no training stage; there are {', '.join(stage.name for stage in training)}")
    return found


def searched(planner: Planner, rows: Sequence[Row], *, compiling: bool) -> list[Row]:
    """Each stage's best proposal; compiling: the best that the compiler finds to fit."""
    proposals = {row.stage: planner.proposals(row) for row in rows}
    chosen = [proposals[row.stage].pop(0) for row in rows]
    while compiling:
        chosen = compiled(chosen)
        refused = [row.stage for row in chosen if row.fits is False and proposals[row.stage]]
        if not refused:
            break
        chosen = [proposals[row.stage].pop(0) if row.stage in refused else row for row in chosen]
    return chosen


def compiled(rows: Sequence[Row]) -> list[Row]:
    """The rows with the compiler's answers; a bar on stderr says how far it is."""
    columns = (
        TextColumn("compiling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=rich.console.Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(rows), note="each stage takes a minute or two")

        def told(stage: str, answer: Compiled) -> None:
            note = f"{stage}: {answer.outcome} after {answer.seconds:.0f} s"
            progress.update(task, advance=1, note=note)
            if not progress.console.is_terminal:
                print(note, file=sys.stderr, flush=True)

        return compile_rows(rows, cache_folder(), told)


def _write_json(path: str, rows: Sequence[Row], chosen: PlanArguments) -> None:
    about = {
        "curriculum": chosen.curriculum,
        "placement": chosen.placement,
        "efficiency": {"products": chosen.products, "attention": chosen.attention},
        "stages": [row.to_json(chosen.price) for row in rows],
        "all": dict(summary(rows, chosen.price)),
    }
    try:
        Path(path).write_text(json.dumps(about, indent=1, default=vars) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"json={path}: {error.strerror}; give a file that can be written") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
