"""MLflow: a sweep is a parent run with a child run for each trial, in one experiment."""

from __future__ import annotations

import logging
import math
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import xxhash
from mlflow.entities import Metric

from ganray.config.schema import Config
from ganray.config.serialization import flatten
from ganray.errors import UserError
from ganray.integrations.mlflow_runs import (
    NAME_TAG,
    NOTE_TAG,
    Run,
    RunContent,
    StoreError,
    end_run,
    find_run_id,
    log_config,
    log_files,
    log_summary,
    open_store,
    store_uri,
    write_run,
)
from ganray.integrations.mlflow_sync import JournalSync
from ganray.sweeps import results
from ganray.sweeps.analysis import RankedSetting
from ganray.sweeps.axes import RATE, SEED, Axis
from ganray.sweeps.design import SweepPlan, Trial
from ganray.sweeps.results import RunResult
from ganray.training import journal
from ganray.training.state import read_config

logger = logging.getLogger(__name__)

SWEEP_TAG = "ganray.sweep"
"""Tag with the sweep's name. Only trials have it, so that a filter on it leaves out the parent."""
MEAN_TAG = "ganray.sweep_means"
"""Tag with the sweep's name of the runs that hold the means of a setting."""
SETTING_TAG = "ganray.setting"
STATUS_TAG = "ganray.status"
"""Tag with "running", or with the trial's result status once MLflow has all of its data."""
_REASON_TAG = "ganray.reason"
VARIETY_CURVES = ("collapse/coverage", "collapse/recall", "collapse/kl_corrected")
LOSS_CURVES = ("loss/D", "loss/G")
"""Metrics over the training that views draw."""
PAGE_RUNS = 100
"""Runs that a page of MLflow loads, until *Load more* is pressed."""
_DIGEST_TAG = "ganray.digest"
_BATCH = 1000  # MLflow's limit for the metrics of one request
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_LIMIT = 8000  # characters of a tag
_MAX_CHILDREN = 50_000  # MLflow's limit for one search
_RATE_FIELDS = {"optimizer.lr_G", "optimizer.lr_D"}
"""Fields that the axis `rate` changes."""
_MLFLOW_STATUS = {
    "finished": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "stopped": "KILLED",
}


def axis_key(axis: Axis) -> str:
    """Return the param that contains the axis's levels, by which MLflow groups runs.

    A single field is a param of every run already; any other axis gets a param of its own.
    """
    fields = {field for level in axis.levels for field in level.overrides}
    is_param = fields == {axis.name} and axis.name != RATE
    has_values = is_param and all(level.overrides[axis.name] is not None for level in axis.levels)
    return axis.name if has_values else axis_tag(axis)


def axis_tag(axis: Axis) -> str:
    """Return the tag that contains the label of an axis's level."""
    return f"axis.{axis.title}"


def setting_name(levels: Sequence[str]) -> str:
    """Return e.g. "normal / 64"."""
    return " / ".join(levels)


@contextmanager
def sync_sweep(
    plan: SweepPlan,
    base: Config,
    dataset_of: Callable[[Config], Mapping[str, str]],
    tags: Mapping[str, str],
    poll_s: float = 2.0,
) -> Iterator[SweepRuns]:
    """Open the parent run, send the trials' journals while the block runs, and end all runs.

    A store that is down at the start gets everything when it is up.

    Args:
        plan: Sweep; its name identifies the parent run.
        base: Config that all trials have in common.
        dataset_of: Function that returns the `RunContent.dataset` of a config.
        tags: What the configs do not contain: commit, Ray job, device.
        poll_s: Interval at which journals are read.
    """
    runs = SweepRuns(plan, base, dataset_of, tags, poll_s)
    runs.open()
    with runs.sync:
        runs.start()
        yield runs


class SweepRuns:
    """The MLflow runs of a sweep."""

    def __init__(
        self,
        plan: SweepPlan,
        base: Config,
        dataset_of: Callable[[Config], Mapping[str, str]],
        tags: Mapping[str, str],
        poll_s: float,
    ) -> None:
        """Prepare the runs; see `sync_sweep` for the arguments."""
        self._plan, self._base, self._dataset_of, self._tags = plan, base, dataset_of, tags
        self._parent: Run | None = None
        self._opening = threading.Lock()
        self._statuses: dict[str, str | None] = {}
        folder, patience_s = base.home / "runs", base.tracking.patience
        self.sync = JournalSync(store_uri(base), folder, self._end_all, patience_s, poll_s)

    def open(self) -> None:
        """Open the parent run, or log that the store cannot be reached yet."""
        try:
            logger.debug("MLflow run %s", self.parent.run_id)
        except StoreError as error:
            logger.warning(
                "%s; the sweep starts without MLflow, which gets everything later", error
            )

    @property
    def parent(self) -> Run:
        """The parent run, which is opened when it is first asked for.

        Raises:
            StoreError: The store cannot be reached or created.
        """
        with self._opening:
            if self._parent is None:
                self._parent = self._open_parent()
            return self._parent

    def _open_parent(self) -> Run:
        plan, base = self._plan, self._base
        axes = {axis_tag(axis): ", ".join(axis.labels) for axis in plan.axes}
        parent_tags = dict(self._tags) | axes | {"ganray.trials": str(len(plan.trials))}
        params, dataset = _common_params(plan, base), self._dataset_of(base)
        with open_store(base) as (client, experiment_id):
            content = RunContent(plan.name, plan.name, params, parent_tags, dataset)
            run_id = write_run(client, experiment_id, content)
            children = client.search_runs(
                [experiment_id],
                f"tags.`{_PARENT_TAG}` = '{run_id}'",
                max_results=_MAX_CHILDREN,
            )
        tags = [run.data.tags for run in children]
        self._statuses = {tag[NAME_TAG]: tag.get(STATUS_TAG) for tag in tags}
        return Run(store_uri(base), run_id, experiment_id, base.run_folder())

    def start(self) -> None:
        """Send what MLflow lacks of trials that ended when it, or the driver, was down."""
        for trial in self._plan.trials:
            folder = self._base.home / "runs" / trial.name
            result = results.read(folder)
            if result is not None and self._statuses.get(trial.name) != result.status:
                config = _read_config(folder) or trial.config(self._base)
                self.begin(trial, replace(config, home=self._base.home))
                self.end(trial, result)

    def begin(self, trial: Trial, config: Config) -> None:
        """Send a trial's journal from now on. Returns at once and never raises."""
        self.sync.follow(trial.name, lambda: self._open(trial, config))

    def end(self, trial: Trial, result: RunResult) -> None:
        """Send the rest of a trial and its result. Returns at once and never raises."""
        self.sync.finish(trial.name, lambda run: _log_result(run, result))

    def _end_all(self, status: str) -> None:
        """Set the final status of the parent, and KILLED for the trials that did not end."""
        end_run(self.parent, status)
        for run in self.sync.unfinished():
            end_run(run, "KILLED")

    def log_report(self, files: Iterable[Path], note: str, metrics: Mapping[str, float]) -> None:
        """Add the sweep's report to the parent: files, its description in Markdown, metrics."""

        def send() -> None:
            log_files(self.parent, files, "report")
            log_summary(self.parent, _finite(metrics), {})
            self.parent.client().set_tag(self.parent.run_id, NOTE_TAG, _shorten(note))

        self.sync.flush_and_call(send)

    def log_means(self, ranking: Sequence[RankedSetting]) -> None:
        """Add a run for each setting with its means over seeds, in place of those of before.

        MLflow's pages draw dozens of runs in a second, but hundreds in a minute.
        """
        for setting in ranking:
            self.sync.flush_and_call(partial(self._log_mean, setting))

    def _content(self, trial: Trial, config: Config, tags: Mapping[str, str]) -> RunContent:
        """Return the content of a run of this trial's setting."""
        levels = list(zip(self._plan.axes, trial.levels, strict=True))
        tags = dict(self._tags) | {
            _PARENT_TAG: self.parent.run_id,
            SETTING_TAG: setting_name(trial.levels),
            **{axis_tag(axis): label for axis, label in levels},
            **tags,
        }
        params = {axis_key(axis): label for axis, label in levels} | flatten(config)
        del params["name"]  # it always differs, so every comparison would contain it
        dataset = self._dataset_of(trial.config(self._base))  # config's root may lack its secrets
        return RunContent(trial.name, trial.label, params, tags, dataset)

    def _open(self, trial: Trial, config: Config) -> Run:
        tags = {SWEEP_TAG: self._plan.name, STATUS_TAG: "running"}
        content = self._content(trial, config, tags)
        client, experiment_id = self.parent.client(), self.parent.experiment_id
        run_id = write_run(client, experiment_id, content)
        log_config(client, run_id, config)
        return Run(self.parent.uri, run_id, experiment_id, config.run_folder())

    def _log_mean(self, setting: RankedSetting) -> None:
        trials = [trial for trial in self._plan.trials if trial.levels == setting.levels]
        folders = [self._base.home / "runs" / trial.name for trial in trials]
        # The metrics of a crashed or stopped run do not describe its setting.
        scored = [f for f in folders if (result := results.read(f)) is not None and result.scored]
        points = [
            (curve, value, step)
            for curve in (*VARIETY_CURVES, *LOSS_CURVES)
            for step, value in _mean_curve(scored, curve)
        ]
        means = {f"final/{name}": mean.value for name, mean in setting.means.items()}
        means = _finite(means) | {"final/diverged": setting.diverged / setting.n}
        digest = xxhash.xxh3_128_hexdigest(repr((points, means)).encode())

        config = trials[0].config(self._base)
        tags = {MEAN_TAG: self._plan.name, _DIGEST_TAG: digest}
        content = self._content(trials[0], config, tags)
        name, label = f"{trials[0].name}-mean", setting_name(setting.levels)
        params = {name: value for name, value in content.params.items() if name != SEED}
        content = replace(content, name=name, label=f"{label}, mean of {setting.n}", params=params)
        client, experiment_id = self.parent.client(), self.parent.experiment_id
        if run_id := find_run_id(client, experiment_id, name):
            known = client.get_run(run_id)
            if (known.info.status, known.data.tags.get(_DIGEST_TAG)) == ("FINISHED", digest):
                return
            client.delete_run(run_id)  # points of a metric cannot be replaced
        run_id = write_run(client, experiment_id, content)
        run = Run(self.parent.uri, run_id, experiment_id, config.run_folder())
        metrics = [Metric(curve, value, 0, step) for curve, value, step in points]
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
        log_summary(run, means, {})
        end_run(run, "FINISHED")


def has_means(plan: SweepPlan) -> bool:
    """Return whether the means of settings are runs of their own: of several seeds each.

    Not of more settings than a page loads, as it would begin with the worst ones.
    """
    return len(plan.settings) < len(plan.trials) and len(plan.settings) <= PAGE_RUNS


def _mean_curve(folders: Iterable[Path], name: str) -> list[tuple[int, float]]:
    """Return the steps of a metric and its mean over the runs that reached each step."""
    values: defaultdict[int, list[float]] = defaultdict(list)
    for folder in folders:
        for step, value in zip(*(x.tolist() for x in journal.history(folder, name)), strict=True):
            values[step].append(value)
    return [(step, statistics.fmean(values[step])) for step in sorted(values)]


def _log_result(run: Run, result: RunResult) -> None:
    metrics = {}
    if result.scored:  # the metrics of a crashed or stopped run do not describe its setting
        metrics = _finite(result.values) | {"diverged": float(result.status == "diverged")}
    log_summary(run, {f"final/{name}": value for name, value in metrics.items()}, {})
    samples = run.folder / "samples.png"
    log_files(run, [samples] if samples.exists() else [])
    end_run(run, _MLFLOW_STATUS[result.status])
    # This status means that MLflow has everything, so it is written last.
    tags = {STATUS_TAG: result.status}
    if result.reason or _REASON_TAG in run.client().get_run(run.run_id).data.tags:
        tags[_REASON_TAG] = result.reason  # that of an earlier attempt is replaced
    log_summary(run, {}, tags)


def _common_params(plan: SweepPlan, base: Config) -> dict[str, object]:
    """Return the params that all trials share."""
    varied = {field for axis in plan.axes for level in axis.levels for field in level.overrides}
    if RATE in varied:
        varied |= _RATE_FIELDS
    return {k: v for k, v in flatten(base).items() if k not in varied | {SEED, "name"}}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _read_config(folder: Path) -> Config | None:
    try:
        return read_config(folder)
    except UserError:
        return None


def _shorten(note: str) -> str:
    """Cut the note at the end of a line, so that no table row is torn."""
    if len(note) <= _NOTE_LIMIT:
        return note
    tail = "\n\nMore of this is among the artifacts, in `report/`."
    head = note[: _NOTE_LIMIT - len(tail)]
    return head[: head.rfind("\n")] + tail
