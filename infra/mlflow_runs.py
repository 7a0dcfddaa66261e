"""The MLflow half of tracking: find or make the run of a series, see what it holds, write what it lacks.

MLflow is imported when `MlflowRuns` is made (seconds), so only the tracker's thread makes one. Every method may raise
whatever MLflow, its database driver or the network raises; the tracker is the boundary that stops it. Each one may be
repeated after a failure at any point: runs are found again by tags, parameters and steps that MLflow already holds are
not sent again, and identical metric rows are one row in its database.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from infra.records import Step, flatten

EXPERIMENT = "ringworld"
CURSOR = "tokens"
"""Its value is the tokens seen at its step, written last in a row: the latest value is where logging stands."""

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED"]

# Limits of MLflow's own validation (mlflow.utils.validation).
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
_KEY_LENGTH = 250
_TAG_LENGTH = 8000

_NOT_IN_KEYS = re.compile(r"[^\w\-. :/]", re.ASCII)

# A dead server must cost seconds, not MLflow's default of 7 retries with 120 s each. Only where nobody has chosen.
_QUIET_AND_BRIEF = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class MlflowRuns:
    """Runs of one tracking server, all in the experiment `ringworld`."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        """artifacts: where a new experiment keeps artifacts; None leaves it to the server."""
        for name, value in _QUIET_AND_BRIEF.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = MlflowClient(uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            self._experiment = self._client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        elif experiment.lifecycle_stage != "active":
            raise RuntimeError(
                f"the experiment {EXPERIMENT!r} was deleted in MLflow: restore it, or use another server"
            )
        else:
            self._experiment = experiment.experiment_id

    def find_or_create(self, name: str, identity: Mapping[str, str], parent: str | None, started_ms: int) -> str:
        """Id of the oldest run bearing all tags of `identity`, made when there is none. A parent makes it nested."""
        conditions = [f"tags.`{key}` = '{_tag(value)}'" for key, value in identity.items()]
        if parent:
            conditions.append(f"tags.`mlflow.parentRunId` = '{parent}'")
        runs = self._client.search_runs(
            [self._experiment], " and ".join(conditions), max_results=1, order_by=["attributes.start_time ASC"]
        )
        if runs:
            return runs[0].info.run_id
        tags = {key: _tag(value) for key, value in identity.items()}
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self._experiment, start_time=started_ms, tags=tags, run_name=name)
        return run.info.run_id

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Write the parameters that the run lacks; MLflow refuses to change one, so those it has are left."""
        from mlflow.entities import Param

        present = self._client.get_run(run_id).data.params
        missing = [Param(key, value) for key, value in params.items() if key not in present]
        for start in range(0, len(missing), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=missing[start : start + _PARAMS_PER_BATCH])

    def cursor(self, run_id: str) -> int:
        """Tokens of the last step that the run holds; 0 for none."""
        return int(self._client.get_run(run_id).data.metrics.get(CURSOR, 0))

    def log_steps(self, run_id: str, steps: Iterable[Step]) -> None:
        """Write every figure of the steps, each at MLflow step = tokens seen, in few requests."""
        from mlflow.entities import Metric

        batch: list[Any] = []
        for step in steps:
            tokens = int(step["tokens"])
            at_ms = int(1000 * step["time"]) if _is_number(step.get("time")) else 0
            figures = {key: value for key, value in step.items() if key not in (CURSOR, "time") and _is_number(value)}
            row = [Metric(metric_key(key), float(value), at_ms, tokens) for key, value in figures.items()]
            row.append(Metric(CURSOR, float(tokens), at_ms, tokens))
            if len(batch) + len(row) > _METRICS_PER_BATCH:
                self._client.log_batch(run_id, metrics=batch)
                batch = []
            batch.extend(row)
        if batch:
            self._client.log_batch(run_id, metrics=batch)

    def log_figures(self, run_id: str, figures: Mapping[str, float], at_ms: int) -> None:
        """Write the final figures, at step 0. The same time given again makes a repetition the same row."""
        from mlflow.entities import Metric

        rows = [Metric(metric_key(key), float(value), at_ms, 0) for key, value in figures.items()]
        for start in range(0, len(rows), _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=rows[start : start + _METRICS_PER_BATCH])

    def log_folder(self, run_id: str, folder: str) -> None:
        """Copy the files of a local folder to the run's artifacts, over what has the same name."""
        self._client.log_artifacts(run_id, folder)

    def set_status(self, run_id: str, status: Status, ended_ms: int | None = None) -> None:
        if status in ("RUNNING", "SCHEDULED"):
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=ended_ms)


def as_params(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A nested recipe as MLflow parameters: dotted keys, names and values cut to MLflow's limits."""
    return {metric_key(key): _cut(value) for key, value in flatten(recipe).items()}


def metric_key(name: str) -> str:
    """`name` as MLflow allows it: letters, digits and `_-. :/`, at most 250."""
    return _NOT_IN_KEYS.sub("_", name)[:_KEY_LENGTH]


def _cut(value: str) -> str:
    return value if len(value) <= _PARAM_LENGTH else value[: _PARAM_LENGTH - 3] + "..."


def _tag(value: str) -> str:
    """A tag's value that can also stand in a search filter, where a quote would end it."""
    return value.replace("'", "_").replace("\\", "/")[:_TAG_LENGTH]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
