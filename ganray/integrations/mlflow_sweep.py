"""MLflow: a study is a parent run with a child run for each trial, in one experiment.

The driver alone talks to MLflow, and one thread of it serves all trials. Callers say what a trial
should look like by now; the thread brings MLflow there, again and again until it succeeds. A dead
server therefore stalls nobody, and what it missed is sent when it is back, or by the next driver
that is started on the same study.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ganray.config.schema import Config
from ganray.config.serialization import flatten, from_dict
from ganray.integrations.mlflow_sync import (
    NAME_TAG,
    REFUSED,
    JournalSync,
    Run,
    RunContent,
    find_run,
    first_line,
    log_config,
    log_file,
    log_report,
    open_store,
    store_uri,
    write_run,
)
from ganray.sweeps import results
from ganray.sweeps.axes import RATE, SEED, Axis
from ganray.sweeps.design import SweepPlan, Trial
from ganray.sweeps.results import RunResult
from ganray.training.state import CONFIG_FILE

logger = logging.getLogger(__name__)

SWEEP_TAG = "ganray.sweep"
"""Tag with the sweep's name. Only trials have it, so that a filter on it leaves out the parent."""
SETTING_TAG = "ganray.setting"
STATUS_TAG = "ganray.status"
"""Tag with "running", or with the trial's result status once MLflow has all of its data."""
_PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
"""What MLflow shows as a description, in Markdown."""
_NOTE_LIMIT = 8000  # characters of a tag
_KILLED_S = 2.0  # `ray job stop` sends SIGKILL three seconds after SIGTERM
_CLOSE_S = 60.0
_LONGEST_WAIT_S = 60.0
_RATES = {"optimizer.lr_G", "optimizer.lr_D"}
"""What the axis `rate` changes."""
_STATUS = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED"}


def axis_key(axis: Axis) -> str:
    """The param that tells the axis's levels apart in MLflow, which groups runs by it.

    A single field is a param of every run already; any other axis gets one of its own.
    """
    fields = {field for level in axis.levels for field in level.overrides}
    is_param = fields == {axis.name} and axis.name != RATE
    is_told = is_param and all(level.overrides[axis.name] is not None for level in axis.levels)
    return axis.name if is_told else axis_tag(axis)


def axis_tag(axis: Axis) -> str:
    """The tag that holds the level's label."""
    return f"axis.{axis.title.replace(' ', '_')}"


def setting_name(levels: Sequence[str]) -> str:
    """E.g. "normal / 64"."""
    return " / ".join(levels)


class SweepRuns:
    """The study's runs in MLflow.

    `begin` and `end` only take note and return at once; they never raise.
    """

    def __init__(
        self,
        study: SweepPlan,
        base: Config,
        dataset_of: Callable[[Config], Mapping[str, str]],
        tags: Mapping[str, str],
        poll_s: float = 2.0,
    ) -> None:
        """Open the parent run, or find the one that has the study's name, and start the thread.

        Args:
            study: whose trials are to come.
            base: the config that they depart from.
            dataset_of: name, digest (at most 36 characters) and path of the images of a config;
                the base's stand for the study.
            tags: what the configs do not say: commit, Ray job, device.
            poll_s: seconds between looks into the journals.

        Raises:
            ValueError: the store cannot be reached or made.
        """
        self._study, self._base, self._dataset_of = study, base, dataset_of
        self._tags, self._poll_s = tags, poll_s
        with open_store(base) as (client, experiment_id):
            self._client = client
            run_id = find_run(client, experiment_id, study.name)
            content = RunContent(study.name, study.name, _common(study, base), self._parent_tags())
            run_id = write_run(client, experiment_id, run_id, content, dataset_of(base))
            self.parent = Run(store_uri(base), run_id, experiment_id, base.run_folder())
            self._children, known = self._look()
        self._live: dict[str, _Child] = {}
        self._changed = threading.Lock()  # of _live and what its values want
        self._wake, self._stop = threading.Event(), threading.Event()
        self._closing = _Closing("RUNNING", math.inf, hurried=False)
        self._closed = self._complained = False
        self._expect_missed(base, known)
        self._thread = threading.Thread(target=self._serve, name="mlflow-study", daemon=True)
        self._thread.start()

    def begin(self, trial: Trial, config: Config) -> None:
        """The trial runs, for the first time or again."""
        with self._changed:
            child = self._live.setdefault(trial.name, _Child(trial, config))
            child.config, child.outcome = config, None
        self._wake.set()

    def end(self, trial: Trial, outcome: RunResult) -> None:
        """The trial has ended; its journal and its outcome will not change."""
        with self._changed:
            if trial.name in self._live:
                self._live[trial.name].outcome = outcome
        self._wake.set()

    def close(self, status: str, seconds: float | None = None) -> None:
        """End the parent and, where it was killed, the children that are running.

        Args:
            status: of the parent.
            seconds: within which this returns, even with MLflow down. None: two if it was killed,
                which leaves no time to send what is not there yet; else a minute.
        """
        allowed = seconds or (_KILLED_S if status == "KILLED" else _CLOSE_S)
        hurried = allowed <= _KILLED_S
        self._closing = _Closing(status, time.monotonic() + allowed, hurried)
        self._stop.set()
        self._wake.set()
        self._thread.join(allowed + 0.2)
        if not self._closed:
            logger.warning(
                "MLflow at %s is unreachable: the run folders contain all results; the same command"
                " sends the rest",
                self.parent.uri,
            )

    def log_report(self, files: Iterable[Path], note: str, metrics: Mapping[str, float]) -> None:
        """Put what the study came to into the parent: files, its description, numbers."""
        try:
            for file in files:
                log_file(self.parent, file, "report")
            log_report(self.parent, _finite(metrics), {})
            self._client.set_tag(self.parent.run_id, NOTE_TAG, _shortened(note))
        except REFUSED as error:
            self._complain(error)

    def _parent_tags(self) -> dict[str, str]:
        axes = {axis_tag(axis): ", ".join(axis.labels) for axis in self._study.axes}
        return dict(self._tags) | axes | {"ganray.trials": str(len(self._study.trials))}

    def _child_tags(self, trial: Trial) -> dict[str, str]:
        levels = zip(self._study.axes, trial.levels, strict=True)
        return dict(self._tags) | {
            _PARENT_TAG: self.parent.run_id,
            SWEEP_TAG: self._study.name,
            STATUS_TAG: "running",
            SETTING_TAG: setting_name(trial.levels),
            **{axis_tag(axis): label for axis, label in levels},
        }

    def _look(self) -> tuple[dict[str, str], dict[str, str]]:
        """All children's run ids, and the outcomes that MLflow has, by trial."""
        ids: dict[str, str] = {}
        known: dict[str, str] = {}
        token = None
        wanted = f"tags.`{_PARENT_TAG}` = '{self.parent.run_id}'"
        while True:
            page = self._client.search_runs(
                [self.parent.experiment_id], wanted, max_results=200, page_token=token
            )
            for run in page:
                name = run.data.tags[NAME_TAG]
                ids[name] = run.info.run_id
                known[name] = run.data.tags[STATUS_TAG]
            token = page.token
            if not token:
                return ids, known

    def _expect_missed(self, base: Config, known: Mapping[str, str]) -> None:
        """Take up trials that ended when MLflow, or the driver, was down."""
        for trial in self._study.trials:
            folder = base.home / "runs" / trial.name
            outcome = results.read(folder)
            if outcome is not None and known.get(trial.name) != outcome.status:
                config = _config_in(folder) or trial.config(base)
                self._live[trial.name] = _Child(trial, replace(config, home=base.home), outcome)

    def _serve(self) -> None:
        wait = self._poll_s
        while not self._stop.is_set():
            if self._pass():
                self._complained, wait = False, self._poll_s
                self._wake.wait(wait)
                self._wake.clear()
            else:
                # A dead server is asked less and less often; the run folders keep everything.
                self._stop.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
        while not self._close() and time.monotonic() + 0.5 < self._closing.deadline:
            time.sleep(0.5)

    def _pass(self) -> bool:
        """Bring all trials up to date; False once MLflow refuses one."""
        with self._changed:
            children = list(self._live.values())
        for child in children:
            if self._closing.hurried:
                return True
            try:
                self._advance(child)
            except REFUSED as error:
                self._complain(error)
                with self._changed:  # last in line: one bad picture must not hold up the others
                    self._live[child.trial.name] = self._live.pop(child.trial.name)
                return False
        return True

    def _close(self) -> bool:
        """False if MLflow would not take it all."""
        if not self._closing.hurried and not self._pass():
            return False
        try:
            self._client.set_terminated(self.parent.run_id, self._closing.status)
            for child in self._live.values():
                if child.run is not None and child.outcome is None:
                    self._client.set_terminated(child.run.run_id, "KILLED")
        except REFUSED as error:
            self._complain(error)
            return False
        self._closed = True
        return True

    def _advance(self, child: _Child) -> None:
        outcome, config = child.outcome, child.config
        if child.follower is None:
            run = self._open(child.trial, config)
            child.follower, child.run = JournalSync(run), run
        child.follower.send()
        if outcome is None or child.run is None:
            return
        self._log_end(child.run, outcome)
        with self._changed:
            if child.outcome is outcome:  # else it was begun again meanwhile
                del self._live[child.trial.name]
            else:
                child.follower = None

    def _open(self, trial: Trial, config: Config) -> Run:
        run_id, experiment_id = self._children.get(trial.name), self.parent.experiment_id
        if run_id == "":  # a try that failed: was the run made?
            run_id = find_run(self._client, experiment_id, trial.name)
        self._children[trial.name] = run_id or ""
        levels = zip(self._study.axes, trial.levels, strict=True)
        params = {axis_key(axis): label for axis, label in levels} | flatten(config)
        del params["name"]  # differs always, so it would stand in every comparison
        content = RunContent(trial.name, trial.label, params, self._child_tags(trial))
        dataset = self._dataset_of(trial.config(self._base))  # config's root may lack its secrets
        run_id = write_run(self._client, experiment_id, run_id, content, dataset)
        self._children[trial.name] = run_id
        log_config(self._client, run_id, config)
        return Run(self.parent.uri, run_id, experiment_id, config.run_folder())

    def _log_end(self, run: Run, outcome: RunResult) -> None:
        values = {}
        if outcome.scored:  # a crashed or stopped run says nothing of its setting
            values = _finite(outcome.values) | {"diverged": float(outcome.status == "diverged")}
        log_report(run, {f"final/{name}": value for name, value in values.items()}, {})
        if (picture := run.folder / "samples.png").exists():
            log_file(run, picture)
        self._client.set_terminated(run.run_id, _STATUS[outcome.status])
        # Last, as it says that nothing is missing.
        log_report(run, {}, {"ganray.reason": outcome.reason, STATUS_TAG: outcome.status})

    def _complain(self, error: Exception) -> None:
        if not self._complained:  # once an outage
            logger.warning("MLflow at %s: %s; trying again", self.parent.uri, first_line(error))
        self._complained = True


@dataclass
class _Child:
    """A trial that MLflow does not have all of."""

    trial: Trial
    config: Config
    outcome: RunResult | None = None
    """None while it runs."""
    run: Run | None = None
    """None before MLflow has it."""
    follower: JournalSync | None = None


@dataclass(frozen=True)
class _Closing:
    status: str
    deadline: float
    hurried: bool
    """Whether there is time for statuses alone."""


def _common(study: SweepPlan, base: Config) -> dict[str, object]:
    """The params that all trials share."""
    varied = {field for axis in study.axes for level in axis.levels for field in level.overrides}
    if RATE in varied:
        varied |= _RATES
    return {k: v for k, v in flatten(base).items() if k not in varied | {SEED, "name"}}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _config_in(folder: Path) -> Config | None:
    try:
        return from_dict(json.loads((folder / CONFIG_FILE).read_text()))
    except (FileNotFoundError, ValueError):
        return None


def _shortened(note: str) -> str:
    """Cut at the end of a line, so that no table row is torn."""
    if len(note) <= _NOTE_LIMIT:
        return note
    tail = "\n\nMore of this is among the artifacts, in `report/`."
    head = note[: _NOTE_LIMIT - len(tail)]
    return head[: head.rfind("\n")] + tail
