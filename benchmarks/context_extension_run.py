"""The experiment carried out: stages by ringworld's own trainer, probes by its scorer, one line in a file for each.

`results.jsonl` decides what is done: whatever has a line is not done again, so a run that was killed goes on at the
stage it was in, at that stage's newest checkpoint. Times are those of the steps that count, without compilation.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.context_extension_arms import Probe, Settings, Stage, probe_flops, probes, stage_flops, stages
from benchmarks.context_extension_data import Data, prepare, vocabulary_of
from ringworld.data.files import read_json, write_json
from ringworld.data.plan import PackingPlan
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from ringworld.evaluate.held_out import windows
from ringworld.evaluate.loss_by_position import summarize
from ringworld.evaluate.needle import Prompt, grade, needle_prompts, pack_prompts
from ringworld.evaluate.recipe import NeedleConfig
from ringworld.evaluate.scorer import Rows, Scorer
from ringworld.exits import DONE, PREEMPTED
from ringworld.mesh import MeshSpec
from ringworld.model.config import ModelConfig
from ringworld.strict import to_mapping
from ringworld.train import trainer
from ringworld.train.progress import read_progress
from ringworld.train.recipe import OptimizerConfig, TrainInputs, TrainJob, TrainOptions, TrainRecipe
from ringworld.train.weights import load_weights

SAVE_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Asked:
    """The needle prompts of one length, as rows."""

    prompts: Sequence[Prompt]
    rows: Rows
    places: Sequence[tuple[int, int]]


class Experiment:
    """One experiment in one folder."""

    def __init__(self, folder: Path, settings: Settings, mesh: MeshSpec) -> None:
        """UserError where the folder holds another experiment."""
        self._folder, self._settings, self._spec = folder, settings, mesh
        folder.mkdir(parents=True, exist_ok=True)
        kept, mine = folder / "settings.json", json.loads(json.dumps(to_mapping(settings)))
        if kept.exists() and (found := read_json(str(kept))) != mine:
            differ = {name: (found.get(name), value) for name, value in mine.items() if found.get(name) != value}
            raise UserError(f"{folder} holds another experiment: {differ}; give another --out, or its settings")
        write_json(str(kept), mine)
        self.stages = stages(settings)
        self.probes = probes(settings, self.stages)
        self.lines = _read_lines(folder / "results.jsonl")
        self._data = prepare(folder / "data", settings, self.stages)
        self._vocabulary = vocabulary_of(self._data)
        self._flops = {stage.key: self._stage_flops(stage) for stage in self.stages}
        self._flops |= {f"probe {probe.key}": probe_flops(settings, probe, self._vocabulary) for probe in self.probes}
        self._measuring: Measuring | None = None
        self.stopped = False  # asked to, with everything saved

    @property
    def about(self) -> dict[str, Any]:
        """The data that were made and the machine."""
        device = jax.devices()[0]
        return {"data": read_json(str(self._folder / "data" / "done.json")), "device": device.device_kind,
                "devices": jax.device_count()}  # fmt: skip

    def plan(self) -> list[tuple[str, float]]:
        """Every item in the order in which it is done, and its floating-point operations."""
        found = []
        for stage in self.stages:
            found += [stage.key, f"probe {stage.key}"]
            if stage.key == f"base-{self._settings.lengths[0]}":
                found += [f"probe {probe.key}" for probe in self.probes if probe.key != stage.key and
                          probe.weights == stage.key]  # fmt: skip
        return [(key, self._flops[key]) for key in found]

    def run(self) -> Iterator[str]:
        """Do what is not done yet; gives the key of each item once it has its line. `stopped` tells how it ended."""
        by_key: dict[str, Stage | Probe] = {stage.key: stage for stage in self.stages}
        by_key |= {f"probe {probe.key}": probe for probe in self.probes}
        todo = [key for key, _ in self.plan() if key not in self.lines]
        spent = flops = 0.0
        for number, key in enumerate(todo, start=1):
            item, began = by_key[key], time.perf_counter()
            line = self._trained(item) if isinstance(item, Stage) else self._measured(item)
            if line is None:
                self.stopped = True
                return
            self._write(key, line)
            spent, flops = spent + time.perf_counter() - began, flops + self._flops[key]
            left = sum(self._flops[key] for key in todo[number:]) * spent / flops
            print(f"[{number}/{len(todo)}] {key}: {_told(line)}; {spent / 60:.1f} min, about {left / 60:.0f} left",
                  file=sys.stderr, flush=True)  # fmt: skip
            yield key

    # ------------------------------------------------------------------ training

    def _trained(self, stage: Stage) -> dict[str, Any] | None:
        folder = self._stage_folder(stage.key)
        folder.mkdir(parents=True, exist_ok=True)
        job = self._job(stage)
        job.save(str(folder / "job.yaml"))
        code = trainer.train(job, str(folder / "state"), self._spec)
        if code == PREEMPTED:
            return None
        assert code == DONE, code
        records = read_progress(folder / "state" / "progress.jsonl")
        last = records[-max(1, len(records) // 20) :]
        return {
            "kind": "stage",
            "stage": to_mapping(stage),
            "slots": stage.slots,
            "tokens": records[-1].tokens,
            "gflop": self._flops[stage.key] / 1e9,
            "seconds": sum(record.seconds - record.compile - record.save for record in records),
            "loss": float(np.mean([record.loss for record in last])),
        }

    def _job(self, stage: Stage) -> TrainJob:
        settings = self._settings
        begins, falls = stage.after is None, stage.length in settings.lengths
        optimizer = OptimizerConfig(
            stage.rate,
            schedule="cosine" if falls else "constant",
            warmup_steps=min(50 if begins else 5, max(1, stage.steps // 4)),
            minimum_rate=stage.rate / 10 if falls else 0.0,
        )
        recipe = TrainRecipe(
            self._model(stage), stage.length, stage.batch_tokens, stage.steps, optimizer, settings.seed,
            dtype="bfloat16" if settings.dtype == "bfloat16" else "float32", init="scratch" if begins else "params",
        )  # fmt: skip
        data, folder = self._data, self._stage_folder(stage.key)
        before = None if stage.after is None else str(self._stage_folder(stage.after) / "params")
        inputs = TrainInputs(data.plan(stage.length, stage.naive), data.rows(stage.length), str(folder), params=before)
        return TrainJob(recipe, inputs, TrainOptions(save_every=0, save_seconds=SAVE_SECONDS, keep=1))

    def _model(self, stage: Stage) -> ModelConfig:
        return self._settings.model(self._vocabulary, stage.rope)

    def _stage_folder(self, key: str) -> Path:
        return self._folder / "stages" / key

    # ------------------------------------------------------------------ measuring

    def _measured(self, probe: Probe) -> dict[str, Any]:
        began = time.perf_counter()
        if self._measuring is None:
            self._measuring = Measuring.of(self._data, self._settings, self._spec)
        stage = next(stage for stage in self.stages if stage.key == probe.weights)
        return self._measuring.measure(probe, self._model(stage), str(self._stage_folder(stage.key) / "params")) | {
            "seconds": time.perf_counter() - began
        }

    # ------------------------------------------------------------------ the account

    def _stage_flops(self, stage: Stage) -> float:
        pairs = PackingPlan.load(self._data.plan(stage.length, stage.naive)).work.mean()
        return stage_flops(self._settings, stage, self._vocabulary, float(pairs))

    def _write(self, key: str, line: dict[str, Any]) -> None:
        self.lines[key] = line
        with open(self._folder / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **line}) + "\n")


class Measuring:
    """Held-out windows and needle prompts, and one compiled program that scores them under any weights and RoPE."""

    def __init__(self, text: Rows, asked: Mapping[int, Asked], mesh: MeshSpec) -> None:
        self._text, self._asked, self._mesh = text, asked, trainer.make_mesh(mesh)
        self._scorer: Scorer | None = None

    @classmethod
    def of(cls, data: Data, settings: Settings, mesh: MeshSpec) -> Measuring:
        """UserError where the held-out documents are too short, or too few."""
        store, tokenizer = TokenStore.open(data.text), load_tokenizer(data.tokenizer)
        longest, asked = settings.lengths[-1], {}
        for length in settings.lengths:
            config = NeedleConfig((length,), settings.depths, settings.rounds_at(length))
            prompts, refused = needle_prompts(config, store, tokenizer, settings.seed)
            if refused:
                raise UserError(f"needle prompts of {length} tokens: {refused[length]}; name more documents")
            answers = [prompt.answer for prompt in prompts]
            asked[length] = Asked(prompts, *pack_prompts([prompt.tokens for prompt in prompts], longest, answers))
        return cls(windows(store, longest, settings.windows), asked, mesh)

    def measure(self, probe: Probe, model: ModelConfig, weights: str) -> dict[str, Any]:
        """Cells of the needle grid at the probe's lengths, and the loss by position up to the longest of them."""
        if self._scorer is None:
            self._scorer = Scorer(model, self._mesh, "float32", 1024)
        params, cells = load_weights(weights, model, self._mesh), []
        for length in probe.lengths:
            asked = self._asked[length]
            scores = self._scorer.score(params, probe.rope, asked.rows)
            cells += [asdict(cell) for cell in grade(asked.prompts, asked.places, scores.hit)]
        seen = max(probe.lengths)
        segments = np.where(np.arange(self._text.tokens.shape[1]) < seen, self._text.segments, 0)
        rows = Rows(self._text.tokens, self._text.targets, segments, self._text.positions)
        loss = self._scorer.score(params, probe.rope, rows).loss[:, :seen]
        found = summarize(loss, segments[:, :seen], 0)
        by_length = {
            str(length): float(loss[:, length // 2 : length].mean(dtype=np.float64)) for length in probe.lengths
        }
        return {
            "kind": "probe",
            "probe": to_mapping(probe),
            "cells": cells,
            "rows": len(loss),
            "loss": {"edges": list(found.edges), "spans": list(found.spans), "late": by_length},
        }


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """By key. A last line that a kill cut short is no line, and is taken off the file."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    found = [json.loads(line) for line in whole.splitlines()]
    return {line.pop("key"): line for line in found}


def _told(line: Mapping[str, Any]) -> str:
    if line["kind"] == "stage":
        return f"loss {line['loss']:.3f}, {line['seconds']:.0f} s of steps"
    shares: dict[int, list[float]] = {}
    for cell in line["cells"]:
        shares.setdefault(cell["length"], []).append(cell["exact"])
    return "needle " + ", ".join(f"{length}: {np.mean(found):.0%}" for length, found in shares.items())
