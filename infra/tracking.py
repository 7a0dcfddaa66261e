"""MLflow as a view of storage: manifests and progress.jsonl are the truth, and MLflow is brought up to them.

- One parent run per Ringworld run, one nested run per stage and series, found again by tags: a retry, a resume and a
  new driver reattach to the run that is there.
- What is missing is decided by comparison: `tracking.json` remembers what MLflow has been brought to, and MLflow's own
  last step says where logging goes on. So an outage needs no queue: what was missed is written when the server is back,
  by this driver or the next, and a resume that trains steps again logs none of them twice.
- It never stops or delays a flow. All of it, MLflow's slow import too, happens in one daemon thread; a failure is
  one warning, retried with growing pauses. A run with nothing new to say never imports MLflow.
- Parameters, tags and the copies of recipe and manifest pass through `infra.redact`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.goodput import figures
from infra.manifest import Manifest
from infra.mlflow_runs import EXPERIMENT, MlflowRuns, Status, as_params
from infra.records import Record, Step, goodput_of, read_history, read_records, read_steps, write_view
from infra.redact import redact, redact_text
from infra.stage import Stage, canonical

if TYPE_CHECKING:
    from infra.storage import Store

CACHE = "tracking.json"
ARTIFACT_SUFFIXES = (".png", ".json")
ARTIFACT_BYTES = 8 * 2**20
ARTIFACT_FILES = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Where tracking goes. uri: None is off, and note then says why. artifacts: None leaves the place to the server.

    own: the database lies in the root itself, so run names alone tell its runs apart.
    """

    uri: str | None
    artifacts: str | None = None
    own: bool = False
    note: str = ""


def choose_target(root: str, environment: Mapping[str, str] = os.environ) -> Target:
    """`MLFLOW_TRACKING_URI` where set; else a SQLite file in a local root; else (gs://) none."""
    if uri := environment.get("MLFLOW_TRACKING_URI"):
        return Target(uri)
    if "://" in root:
        return Target(None, note=f"no MLflow: set MLFLOW_TRACKING_URI to track a run under {redact_text(root)}")
    folder = Path(root).resolve()
    return Target(f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlflow-artifacts").as_uri(), own=True)


@dataclass(frozen=True)
class Synced:
    """What MLflow has been brought to for a series; equal to what storage says when there is nothing to write."""

    fingerprint: str
    series: int
    tokens: int
    status: Status


@dataclass(frozen=True)
class _Change:
    """A series that MLflow is behind on."""

    record: Record
    steps: tuple[Step, ...]
    wanted: Synced


@dataclass
class _OpenRun:
    """A nested run that this driver writes to. logged: tokens of the last step that MLflow holds; never goes back."""

    run_id: str
    logged: int


class Tracker:
    """Keeps MLflow up to date with a run while a driver works on it.

        tracker = Tracker(store, "tiny", stages, choose_target(root))
        tracker.start()
        ...                       # the runner works; tracker.mark(stage, "failed") for what storage cannot say
        tracker.close(timeout=10)

    `sync` may also be called directly, from any thread; it is the only method that raises what MLflow raises.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        stages: Iterable[Stage],
        target: Target,
        interval: float = 5.0,
        longest_pause: float = 60.0,
    ) -> None:
        """interval: seconds between looks at storage; longest_pause: the most between two tries of a dead server."""
        self._store = store
        self._run = run
        self._stages = tuple(stages)
        self._target = target
        self._interval = interval
        self._longest_pause = longest_pause
        self._marks: dict[str, str] = {}
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="mlflow-tracking", daemon=True)
        self._runs: MlflowRuns | None = None
        self._parent_id: str | None = None
        self._open: dict[tuple[str, int], _OpenRun] = {}
        self._behind = True
        self._synced, self._parent_status = self._read_cache()

    def start(self) -> None:
        if self._target.uri is None:
            _log.info(self._target.note or "no MLflow: tracking is off")
        else:
            self._thread.start()

    def mark(self, stage: str, state: str) -> None:
        """Tell what storage does not: that this driver saw the stage 'failed', or 'running' again."""
        self._marks[stage] = state

    def close(self, timeout: float = 10.0) -> bool:
        """Write what is left, for at most `timeout` seconds; whether all of it was. The next driver writes the rest."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
            if self._thread.is_alive():
                _log.warning("MLflow is not up to date; the next driver of this run will write the rest")
        return not self._thread.is_alive() and self._target.uri is not None and not self._behind

    # ------------------------------------------------------------------ the thread

    def _follow(self) -> None:
        failures = 0
        while True:
            last = self._closing.is_set()
            try:
                self.sync()
                if failures:
                    _log.warning("MLflow answers again; what it missed is written")
                failures = 0
            # The boundary: MLflow, its database driver and requests each raise families of their own, and none may
            # reach the flow. Nothing is lost, for nothing counts as written before MLflow has taken it.
            except Exception as error:
                if not failures:
                    where = redact_text(str(self._target.uri))
                    _log.warning("MLflow at %s: %s; going on without, and trying again", where, _brief(error))
                _log.debug("tracking failed", exc_info=True)
                failures += 1
            if last:
                return
            self._closing.wait(min(self._interval * 2 ** min(failures, 16), max(self._longest_pause, self._interval)))

    # ------------------------------------------------------------------ one pass

    def sync(self) -> None:
        """Bring MLflow to what storage says now. Raises whatever MLflow raises; what was written before stays."""
        with self._lock:
            self._behind = True
            records = [record for stage in self._stages for record in read_records(self._store, stage)]
            behind = [change for record in records if (change := self._compare(record))]
            parent_status = self._parent_wanted(records)
            if behind or parent_status != self._parent_status:
                try:
                    self._write(records, behind, parent_status)
                except BaseException:
                    # What was half done is read back from MLflow next time.
                    self._runs, self._parent_id, self._open = None, None, {}
                    raise
                finally:
                    self._write_cache()
            self._behind = False

    def _compare(self, record: Record) -> _Change | None:
        known = self._synced.get(_key(record))
        fingerprint, status = record.stage.fingerprint, self._status(record)
        if known and status == "FINISHED" and (known.fingerprint, known.status) == (fingerprint, status):
            return None  # a finished series never changes: its steps need not be read again
        steps = read_steps(self._store, record)
        wanted = Synced(fingerprint, record.series, int(steps[-1]["tokens"]) if steps else 0, status)
        return _Change(record, steps, wanted) if wanted != known else None

    def _write(self, records: list[Record], behind: list[_Change], parent_status: Status) -> None:
        if self._runs is None:
            assert self._target.uri is not None
            self._runs = MlflowRuns(self._target.uri, self._target.artifacts)
        parent = self._parent(self._runs, records)
        if parent_status == "RUNNING" and self._parent_status != "RUNNING":
            self._runs.set_status(parent, "RUNNING")
            self._parent_status = "RUNNING"
        for change in behind:
            self._write_change(self._runs, parent, change)
        if parent_status != self._parent_status:
            self._runs.set_status(parent, parent_status, _now_ms())
            self._parent_status = parent_status

    def _parent(self, runs: MlflowRuns, records: list[Record]) -> str:
        if self._parent_id is None:
            started = min((_started_ms(record) for record in records), default=_now_ms())
            identity = self._identity() | {"ringworld.role": "run"}
            self._parent_id = runs.find_or_create(self._run, identity, parent=None, started_ms=started)
        return self._parent_id

    def _write_change(self, runs: MlflowRuns, parent: str, change: _Change) -> None:
        record, wanted, manifest = change.record, change.wanted, change.record.manifest
        key = _key(record)
        known = self._synced.get(key)
        if key not in self._open:
            self._open[key] = self._attach(runs, parent, change)
        run = self._open[key]
        runs.log_steps(run.run_id, (step for step in change.steps if step["tokens"] > run.logged))
        run.logged = max(run.logged, wanted.tokens)
        if manifest:
            ended = _to_ms(manifest.provenance.finished)
            runs.log_figures(run.run_id, _figures(manifest) | self._goodput(change), ended)
            self._log_artifacts(runs, run.run_id, record, manifest)
        if known is None or known.status != wanted.status:
            runs.set_status(run.run_id, wanted.status, _to_ms(manifest.provenance.finished) if manifest else _now_ms())
        self._synced[key] = wanted

    def _attach(self, runs: MlflowRuns, parent: str, change: _Change) -> _OpenRun:
        """Find or make the nested run of a series, complete its parameters, and learn how far its steps go."""
        record, stage = change.record, change.record.stage
        name = stage.name if record.series == 1 else f"{stage.name} #{record.series}"
        identity = self._identity() | {
            "ringworld.role": "stage",
            "ringworld.stage": stage.name,
            "ringworld.fingerprint": stage.fingerprint,
            "ringworld.series": str(record.series),
        }
        run_id = runs.find_or_create(name, identity, parent, _started_ms(record, change.steps))
        runs.log_params(run_id, as_params({"kind": stage.recipe.kind, **redact(canonical(stage.recipe))}))
        return _OpenRun(run_id, runs.cursor(run_id))

    def _goodput(self, change: _Change) -> dict[str, float]:
        """Of a finished training stage, under `figures/` like the manifest's."""
        if not change.steps:
            return {}
        record = change.record
        history = read_history(self._store, record.stage.name, record.series, change.steps)
        return {f"figures/{key}": value for key, value in figures(goodput_of(history, record.manifest)).items()}

    def _log_artifacts(self, runs: MlflowRuns, run_id: str, record: Record, manifest: Manifest) -> None:
        with tempfile.TemporaryDirectory(prefix="ringworld-mlflow-") as folder:
            texts = {"recipe.json": canonical(record.stage.recipe), "manifest.json": asdict(manifest)}
            for name, content in texts.items():
                (Path(folder) / name).write_text(json.dumps(redact(content), indent=1) + "\n")
            for path in artifact_paths(manifest):
                found = self._store.read(f"{manifest.stage}/attempt-{manifest.attempt}/{path}")
                if found is not None:
                    copy = Path(folder) / "files" / path
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(found.data)
            runs.log_folder(run_id, folder)

    # ------------------------------------------------------------------ what MLflow should say

    def _identity(self) -> dict[str, str]:
        """Tags that tell this run from others of the same name in a shared server."""
        tags = {"ringworld.run": self._run}
        if not self._target.own:
            place = redact_text(self._store.url())
            tags["ringworld.root"] = place if "://" in place else f"{socket.gethostname()}:{place}"
        return tags

    def _status(self, record: Record) -> Status:
        if record.manifest:
            return "FINISHED"
        if self._marks.get(record.stage.name) == "failed":
            return "FAILED"
        return "KILLED" if self._closing.is_set() else "RUNNING"

    def _parent_wanted(self, records: list[Record]) -> Status:
        """FINISHED when every stage is done and none is made again; SCHEDULED when a driver left some for later."""
        statuses = {self._status(record) for record in records}
        done = {record.stage.name for record in records if record.manifest}
        if "FAILED" in statuses or "failed" in self._marks.values():
            return "FAILED" if self._closing.is_set() else "RUNNING"
        if statuses <= {"FINISHED"} and len(done) == len(self._stages):
            return "FINISHED"
        if not self._closing.is_set():
            return "RUNNING"
        return "KILLED" if "KILLED" in statuses else "SCHEDULED"

    # ------------------------------------------------------------------ tracking.json

    def _read_cache(self) -> tuple[dict[tuple[str, int], Synced], Status | None]:
        """What earlier drivers brought this target to; nothing when the file is absent, foreign or for another."""
        found = self._store.read(CACHE)
        if found is None or not self._target.uri or self._database_is_gone():
            return {}, None
        try:
            cache = json.loads(found.data)
            if cache["uri"] != redact_text(self._target.uri):
                return {}, None
            synced = {
                (entry["stage"], entry["synced"]["series"]): Synced(**entry["synced"]) for entry in cache["stages"]
            }
            return synced, cache["status"]
        except (ValueError, KeyError, TypeError):
            return {}, None  # only a cache: without it, MLflow is asked

    def _write_cache(self) -> None:
        assert self._target.uri is not None
        cache = {
            "uri": redact_text(self._target.uri),
            "experiment": EXPERIMENT,
            "status": self._parent_status,
            "stages": [
                {"stage": stage, "synced": asdict(synced)} for (stage, _), synced in sorted(self._synced.items())
            ],
        }
        write_view(self._store, CACHE, (json.dumps(cache, indent=1) + "\n").encode())

    def _database_is_gone(self) -> bool:
        """A SQLite file that somebody deleted holds nothing of what the cache remembers."""
        uri = self._target.uri or ""
        return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def artifact_paths(manifest: Manifest) -> list[str]:
    """The manifest's pictures and JSON files, up to 8 MiB each, 64 at most. Never a path that leaves its folder."""
    return [
        entry.path
        for entry in manifest.files
        if entry.path.endswith(ARTIFACT_SUFFIXES)
        and entry.bytes <= ARTIFACT_BYTES
        and not entry.path.startswith("/")
        and ".." not in entry.path.split("/")
    ][:ARTIFACT_FILES]


def _figures(manifest: Manifest) -> dict[str, float]:
    """Scalars of the manifest and what the stage cost, under `figures/`, apart from curves of the same name."""
    values: dict[str, Any] = {"seconds": manifest.provenance.seconds, "attempts": manifest.provenance.attempts}
    values |= manifest.values
    return {
        f"figures/{key}": float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _key(record: Record) -> tuple[str, int]:
    return record.stage.name, record.series


def _started_ms(record: Record, steps: tuple[Step, ...] = ()) -> int:
    if record.manifest:
        return _to_ms(record.manifest.provenance.started)
    return int(1000 * steps[0].get("time", time.time())) if steps else _now_ms()


def _to_ms(moment: str) -> int:
    return int(1000 * datetime.fromisoformat(moment).timestamp())


def _now_ms() -> int:
    return int(1000 * time.time())


def _brief(error: Exception) -> str:
    lines = redact_text(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
