"""A grid of tasks, lengths and depths, cell by cell: what a run has finished, the next one with the same words keeps.

- A cell is one task at one length and depth, with some examples. Its seeds come from its own name, so a grid may grow
  by tasks, lengths and depths without changing a cell.
- `cells/NAME.json` holds each example's hash, reply and score, and is written at once when all of them are answered;
  `prompts/NAME.jsonl.gz`, written before it, what was asked. `grid.json` says what all cells have in common, and
  another grid is refused by it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ringworld.data.files import join, read_if_there, write_whole
from ringworld.errors import UserError
from ringworld.evaluate.tasks.answerers import Answerer, Said
from ringworld.evaluate.tasks.scoring import score
from ringworld.evaluate.tasks.task import Ask, Example, Prompting, Refused, Task, make

_VERSION = 1  # of the examples that a seed makes: raised when they change


@dataclass(frozen=True)
class Cell:
    """depth: None where the task places its needles itself."""

    task: str
    length: int
    depth: float | None

    @property
    def name(self) -> str:
        depth = "" if self.depth is None else f"-{self.depth:.4f}"
        return f"{self.task}-{self.length}{depth}"


@dataclass(frozen=True)
class Answered:
    """An example of a cell, with what was said. needles: depths, as measured in tokens."""

    sha256: str
    prompt_tokens: int
    needles: tuple[float, ...]
    answers: tuple[str, ...]
    reply: str
    finish: str
    score: float


@dataclass(frozen=True)
class Result:
    """What became of a cell. refused: why it cannot be asked; empty where it was."""

    cell: Cell
    examples: tuple[Answered, ...]
    refused: str = ""

    @property
    def score(self) -> float | None:
        """0..1; None where nothing was asked."""
        return sum(example.score for example in self.examples) / len(self.examples) if self.examples else None


@dataclass(frozen=True)
class Settings:
    """What all cells of a folder have in common. model, tokenizer, haystack, questions: what identifies each.

    count: examples of a cell. chat: whether prompts go through the chat template.
    """

    model: str
    tokenizer: str
    haystack: str
    questions: str
    count: int
    seed: int
    chat: str

    def mapping(self) -> dict[str, Any]:
        return {"version": _VERSION, **self.__dict__}


def cells_of(tasks: Sequence[Task], lengths: Sequence[int], depths: Sequence[float]) -> list[Cell]:
    """By task and length; a task that takes a depth at each of `depths`, or where there are none at random ones."""
    return [
        Cell(task.name, length, depth)
        for task in tasks
        for length in lengths
        for depth in (depths if task.placed and depths else (None,))
    ]


@dataclass(eq=False)
class Grid:
    """The folder of a grid, a path or URL; None keeps nothing. UserError when it holds another one."""

    folder: str | None
    settings: Settings
    results: dict[Cell, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        path, mine = join(self.folder, "grid.json"), self.settings.mapping()
        theirs = _read(path)
        if theirs is not None:
            differing = [name for name in mine if theirs.get(name) != mine[name]]
            if differing:
                told = "; ".join(f"{name} was {theirs.get(name)!r}, is {mine[name]!r}" for name in differing)
                raise UserError(f"--out {self.folder} holds another grid: {told}; give another folder")
        else:
            _write(path, mine)

    def has(self, cell: Cell) -> bool:
        """Whether a cell's result lies in the folder."""
        return self._kept(cell) is not None

    def answer(
        self,
        cells: Sequence[Cell],
        tasks: Mapping[str, Task],
        prompting: Prompting,
        answerer: Callable[[], Answerer],
        on_cell: Callable[[Result], None] = lambda result: None,
    ) -> list[Result]:
        """The results of all cells; those that lie in the folder are not asked again.

        answerer: called only where something is to be asked. on_cell: called with each result, also of earlier runs.
        """
        waiting = []
        for cell in cells:
            found = self._kept(cell)
            if found is None:
                waiting.append(cell)
            else:
                self._done(found, on_cell)
        under_way: dict[Cell, list[Example]] = {}
        where: list[tuple[Cell, int]] = []
        said: dict[Cell, dict[int, Said]] = {}

        def examples() -> Iterator[Example]:
            for cell in waiting:
                try:
                    made = [self._make(cell, tasks[cell.task], prompting, n) for n in range(self.settings.count)]
                except Refused as reason:
                    self._keep(Result(cell, (), str(reason)), on_cell)
                    continue
                under_way[cell] = made
                where.extend((cell, number) for number in range(len(made)))
                yield from made

        for index, reply in answerer().answers(examples()) if waiting else ():
            cell, number = where[index]
            said.setdefault(cell, {})[number] = reply
            if len(said[cell]) == len(under_way[cell]):
                replies = said.pop(cell)
                made = under_way.pop(cell)
                self._write_prompts(cell, made)
                graded = tuple(_graded(example, replies[number]) for number, example in enumerate(made))
                self._keep(Result(cell, graded), on_cell)
        return [self.results[cell] for cell in cells]

    def _make(self, cell: Cell, task: Task, prompting: Prompting, number: int) -> Example:
        depth = -1 if cell.depth is None else round(cell.depth * 1e6)
        seed = (self.settings.seed, zlib.crc32(cell.task.encode()), cell.length, depth + 1, number)
        return make(task, Ask(cell.length, cell.depth, seed, prompting))

    def _kept(self, cell: Cell) -> Result | None:
        found = None if self.folder is None else _read(self._cell(self.folder, cell))
        if found is None:
            return None
        examples = []
        for example in found["examples"]:
            lists = {name: tuple(example[name]) for name in ("needles", "answers")}
            examples.append(Answered(**{**example, **lists}))
        return Result(cell, tuple(examples), found["refused"])

    def _keep(self, result: Result, on_cell: Callable[[Result], None]) -> None:
        cell = result.cell
        if self.folder is not None:
            _write(
                self._cell(self.folder, cell),
                {
                    "task": cell.task,
                    "length": cell.length,
                    "depth": cell.depth,
                    "score": result.score,
                    "refused": result.refused,
                    "examples": [example.__dict__ for example in result.examples],
                },
            )
        self._done(result, on_cell)

    def _done(self, result: Result, on_cell: Callable[[Result], None]) -> None:
        self.results[result.cell] = result
        on_cell(result)

    def _cell(self, folder: str, cell: Cell) -> str:
        return join(folder, "cells", f"{cell.name}.json")

    def _write_prompts(self, cell: Cell, examples: Sequence[Example]) -> None:
        if self.folder is None:
            return
        path = join(self.folder, "prompts", f"{cell.name}.jsonl.gz")
        lines = []
        for example in examples:
            turns = [{"role": turn.role, "content": turn.text} for turn in example.draft.turns]
            lines.append(json.dumps({"sha256": example.sha256, "turns": turns, "prefix": example.draft.prefix}))
        write_whole(path, gzip.compress(("\n".join(lines) + "\n").encode("utf-8", "replace"), mtime=0))


def _graded(example: Example, said: Said) -> Answered:
    draft = example.draft
    return Answered(
        example.sha256, len(example.ids), example.needles, draft.answers, said.text, said.finish,
        score(said.text, draft.answers, example.scored),
    )  # fmt: skip


def _read(path: str) -> dict[str, Any] | None:
    """None where nothing is."""
    data = read_if_there(path)
    try:
        return None if data is None else json.loads(data)
    except ValueError as wrong:
        raise UserError(f"{path} is no JSON ({wrong}); delete it to have it made again") from wrong


def _write(path: str, value: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())
