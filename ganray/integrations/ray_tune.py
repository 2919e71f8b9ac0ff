"""Ray Tune: many runs at a time, as many as the cluster has room for.

The only importer of ray.tune. A run of one worker is a function in an actor that the next run
reuses, so only the first one waits for torch to be imported; a run of several workers starts a Ray
Train of its own (about 18 CPU-seconds). Either way it is a normal run in a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

# Set before ray is imported. Tune would write a log of each run in three formats, which the journal
# contains already; change the directory of its actors; handle Ctrl-C itself; and print a screen for
# each crash.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")

import torch
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.execution import class_cache
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter

from ganray.config.commands import SweepConfig
from ganray.config.schema import Config, RayConfig, TrainConfig
from ganray.config.serialization import to_dict
from ganray.errors import UserError
from ganray.integrations import ray_cluster, ray_train
from ganray.integrations.ray_driver import (
    DriverNode,
    assets_on_this_node,
    on_this_node,
    ray_storage,
    run_folder,
)
from ganray.integrations.ray_metrics import Gauges
from ganray.sweeps import results
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.datasets import RunAssets
from ganray.sweeps.design import SweepPlan, Trial, make_trial
from ganray.training.context import DrivenContext
from ganray.training.error_file import append_error
from ganray.training.launch import run_worker
from ganray.training.loop import Diverged
from ganray.training.plan import Cluster, Workers
from ganray.training.run_folder import RunFolder
from ganray.training.state import CONFIG_FILE
from ganray.training.stopping import Wait, confirm_stops

# Tune would pass the driver's credentials to the nodes through their logs; nodes have their own.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
)

_TUNE_FOLDER = "tune"
"""Folder of Tune's own state, in the sweep's folder."""
_COLOR = re.compile(r"\x1b\[[0-9;]*m")  # Ray writes colors to files as well
_MEMORY_WAIT_S = 10


@dataclass(frozen=True)
class TrialSetup:
    """Base config, images and workers that all trials of a sweep share."""

    base: Config
    assets: Mapping[Hashable, RunAssets]
    """Images and evaluation assets by `Config.images_identity`."""
    workers: Workers
    """Workers of each trial."""
    driver: DriverNode | None = None
    """Node of the sweep's driver, if nodes share a storage instead of a disk."""

    def assets_of(self, config: Config) -> RunAssets:
        """Return the images and evaluation assets of a trial's config."""
        return self.assets[config.images_identity()]


class SweepObserver(Protocol):
    """Receiver of events on the driver. Tune waits for each call, so calls must be quick."""

    def begin(self, trial: Trial, config: Config, levels: Sequence[Level]) -> None:
        """Handle the start or restart of a run; `levels` are those that a search has chosen."""
        ...

    def retry(self, trial: Trial, reason: str) -> None:
        """Handle the crash of a run that is retried."""
        ...

    def pause(self, reason: str) -> None:
        """Handle a pause of all runs."""
        ...

    def end(self, trial: Trial, result: results.RunResult) -> None:
        """Handle the end of a run."""
        ...


def max_concurrent(options: SweepConfig, workers: Workers, cluster: Cluster) -> int:
    """Return how many runs fit the cluster at a time, at least one."""
    if workers.gpu:
        per_gpu = options.trials_per_gpu if workers.count == 1 else 1
        limit = min(cluster.gpus * per_gpu, cluster.cpus // workers.cpus) // workers.count
    else:
        limit = cluster.cpus // (workers.cpus * workers.count)
    return max(1, min(limit, options.concurrent or limit))


def run(
    setup: TrialSetup,
    plan: SweepPlan,
    options: SweepConfig,
    folder: Path,
    concurrent: int,
    observer: SweepObserver,
) -> None:
    """Run all trials of a sweep that have not ended; resumes an interrupted sweep.

    Args:
        setup: What the trials have in common.
        plan: What differs between them; for tpe and pbt the axes.
        options: Design, retries, GPU share.
        folder: Folder of the sweep. Tune's state in it is unpickled, so it must be the user's own.
        concurrent: Number of trials at a time, from `max_concurrent`.
        observer: Receiver of the events, in this process.

    Raises:
        UserError: Ray killed runs because of low memory more often than they may be retried.
    """

    def ganray_trial(values: dict[str, Any]) -> None:  # its name appears in Tune's records
        _run_trial(setup, plan, options, values)

    resources = _resources(setup.base.ray, setup.workers, options)
    trainable = tune.with_resources(ganray_trial, resources)
    callback = _Callback(setup, plan, options, observer)
    known = results.collect(plan, setup.base.home / "runs")
    done = {t.name for t in plan.trials if known.get(t).status not in ("waiting", "failed")}
    attempts = 0
    while True:
        ended_before = len(callback.ended)
        trials = tuple(t for t in plan.trials if t.name not in done | callback.ended)
        if not (trials or options.is_adaptive):
            return
        try:
            remaining = replace(plan, trials=trials)
            _tuner(trainable, setup, remaining, options, folder, concurrent, callback).fit()
            return
        except RuntimeError as error:
            # Tune retries a run that dies, but fails if Ray kills one because of low memory.
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
        attempts = 0 if len(callback.ended) > ended_before else attempts + 1
        if attempts > options.retries:
            can_reduce = concurrent > 1 and not options.is_adaptive
            advice = f", or with --sweep.concurrent {concurrent // 2}" if can_reduce else ""
            raise UserError(
                "a node is short of memory: Ray kills runs before any of them ends; --resume"
                f" continues from their checkpoints on nodes with more memory{advice}"
            )
        observer.pause(
            f"a node is short of memory, and Ray killed runs; they continue in {_MEMORY_WAIT_S} s"
        )
        time.sleep(_MEMORY_WAIT_S)


def _tuner(
    trainable: Any,
    setup: TrialSetup,
    plan: SweepPlan,
    options: SweepConfig,
    folder: Path,
    concurrent: int,
    callback: _Callback,
) -> tune.Tuner:
    """Return a Tuner for these trials; for tpe and pbt, the interrupted one if there is one.

    A restored Tuner keeps the options that it was started with, even the number of concurrent
    trials. So only searches, whose trials are known to Tune alone, are restored; the trials of
    other designs resume from their own folders.
    """
    storage = ray_storage(setup.base, folder)
    path, system = f"{storage['storage_path']}/{_TUNE_FOLDER}", storage.get("storage_filesystem")
    if options.is_adaptive and tune.Tuner.can_restore(path, system):
        tuner = tune.Tuner.restore(path, trainable, resume_errored=True, storage_filesystem=system)
        # The restored callback has lost what cannot be pickled; Tune has no public way to set one.
        assert tuner._local_tuner is not None
        tuner._local_tuner.get_run_config().callbacks = [callback]
        return tuner
    return tune.Tuner(
        trainable,
        param_space=_search_space(plan, options),
        tune_config=_tune_config(setup, plan, options, concurrent),
        run_config=tune.RunConfig(
            name=_TUNE_FOLDER,
            **storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=options.retries),
            callbacks=[callback],
        ),
    )


def _resources(config: RayConfig, workers: Workers, options: SweepConfig) -> Any:
    """Return what Tune reserves for one trial. Ray Train reserves several workers' resources."""
    if workers.count > 1:
        return {ray_cluster.HEAD_NODE: 0.001}
    share = {"GPU": 1 / options.trials_per_gpu} if workers.gpu else {}
    resources = ray_cluster.worker_resources(config, workers) | share
    if not config.labels:
        return resources
    return tune.PlacementGroupFactory([resources], bundle_label_selector=[config.labels])


def _search_space(plan: SweepPlan, options: SweepConfig) -> dict[str, Any]:
    if options.is_adaptive:
        return {"levels": {axis.name: _domain(axis) for axis in plan.axes}}
    return {"trial": tune.grid_search([_as_json(trial) for trial in plan.trials])}


def _domain(axis: Axis) -> Any:
    if axis.range is None:
        return tune.choice(list(axis.labels))
    low, high = axis.range
    return tune.lograndint(int(low), int(high) + 1) if axis.whole else tune.loguniform(low, high)


def _as_json(trial: Trial) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(trial)))


def _tune_config(
    setup: TrialSetup, plan: SweepPlan, options: SweepConfig, concurrent: int
) -> tune.TuneConfig:
    metric = f"collapse/{options.metric}"
    return tune.TuneConfig(
        metric=metric if options.is_search else None,
        mode="max" if options.is_search else None,
        num_samples=options.num_trials if options.is_adaptive else 1,
        search_alg=_tpe_search(metric, concurrent) if options.design == "tpe" else None,
        scheduler=_scheduler(setup.base.train, plan, options),
        # Tune does not allow its own limit beside that of a searcher.
        max_concurrent_trials=concurrent if options.design != "tpe" else None,
        reuse_actors=setup.workers.count == 1,
    )


def _tpe_search(metric: str, concurrent: int) -> ConcurrencyLimiter:
    import optuna  # an optional dependency
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0)
    search = OptunaSearch(metric=metric, mode="max", sampler=sampler)
    return ConcurrencyLimiter(search, max_concurrent=concurrent)


def _scheduler(train: TrainConfig, plan: SweepPlan, options: SweepConfig) -> TrialScheduler | None:
    kimg, interval = train.kimg, train.checkpoint_every
    if options.design == "asha":
        return ASHAScheduler(
            time_attr="kimg",
            max_t=kimg,  # pyright: ignore[reportArgumentType]
            grace_period=interval,  # pyright: ignore[reportArgumentType]
            reduction_factor=2,
        )
    if options.design == "pbt":
        return PopulationBasedTraining(
            time_attr="kimg",
            perturbation_interval=interval,
            # Moves to a neighbor in a list; multiplies a value of any other domain by 0.8 or 1.2.
            hyperparam_mutations={
                "levels": {a.name: _domain(a) if a.range else list(a.labels) for a in plan.axes}
            },
        )
    return None


class _Callback(tune.Callback):
    """Passes Tune's events on to the observer, with the trials and results they stand for."""

    def __init__(
        self, setup: TrialSetup, plan: SweepPlan, options: SweepConfig, observer: SweepObserver
    ) -> None:
        self._setup, self._plan, self._options = setup, plan, options
        self._observer = observer
        self.ended: set[str] = set()
        """Names of the trials that ended other than by a failure."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles callbacks, and observers own threads."""
        return {}

    def on_step_begin(self, *_: Any, **info: Any) -> None:
        for tune_trial in info["trials"]:  # restored ones have the retries they were started with
            tune_trial.max_failures = self._options.retries

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        trial, values = self._trial(info["trial"]), info["trial"].config
        levels = levels_of(self._plan, values) if "levels" in values else ()
        self._observer.begin(trial, trial.config(self._setup.base), levels)

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        self._end(info["trial"], "stopped", "by the scheduler, before its end")

    def on_trial_recover(self, *_: Any, **info: Any) -> None:
        self._observer.retry(self._trial(info["trial"]), self._record_error(info["trial"]))

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        """Handle a crash after the last retry."""
        self._end(info["trial"], "failed", self._record_error(info["trial"]))

    def _record_error(self, tune_trial: Any) -> str:
        """Append the latest crash to the run's `error.txt` and return it as one line."""
        text = _COLOR.sub("", Path(tune_trial.error_file).read_text())
        folder = self._trial(tune_trial).config(self._setup.base).run_folder()
        # Tune's file repeats earlier crashes, which are recorded already.
        path = append_error(folder, "Ray Tune", text.rpartition("Failure # ")[2])
        return f"{summarize_error(text)} (details: {path})"

    def _end(self, tune_trial: Any, status: results.Status, reason: str) -> None:
        trial = self._trial(tune_trial)
        config = trial.config(self._setup.base)
        folder = config.run_folder()
        if results.images_seen(folder) >= config.train.steps() * config.train.batch_size:
            status, reason = "finished", ""  # stopped at its very end
        result = results.read(folder)
        if result is None or result.status == "failed":  # the latter is of an earlier attempt
            result = results.record(folder, status, reason)
        if result.status != "failed":
            self.ended.add(trial.name)
        self._observer.end(trial, result)

    def _trial(self, tune_trial: Any) -> Trial:
        return trial_of(self._plan, self._options, tune_trial.config, tune_trial.trial_id)


def summarize_error(text: str) -> str:
    """Return the last error in Tune's error file as one line: the exception, or how it died."""
    last = text.rpartition("Failure # ")[2].splitlines()[1:]
    lines = [line.strip() for line in last if line.strip()] or ["no error message"]
    # A traceback ends with the exception; Ray's own messages begin with the reason.
    return lines[-1] if lines[0].startswith("ray::") else lines[0].partition(". ")[0]


def trial_of(
    plan: SweepPlan, options: SweepConfig, values: Mapping[str, Any], trial_id: str
) -> Trial:
    """Return the trial that Tune's values describe.

    If Tune chooses the levels, the seed follows from Tune's id of the trial, so that a search does
    not find a lucky seed. A member of a population keeps its name when its levels change.
    """
    if "trial" in values:
        trial = values["trial"]
        return Trial(**(trial | {"levels": tuple(trial["levels"])}))
    seed = int.from_bytes(hashlib.sha256(trial_id.encode()).digest()[:2], "little")
    trial = make_trial(plan.name, levels_of(plan, values), seed)
    if options.design == "pbt":
        return replace(trial, name=f"{plan.name}.member-{seed}", label=f"member-{seed}")
    return trial


def levels_of(plan: SweepPlan, values: Mapping[str, Any]) -> list[Level]:
    """Return the level of each axis that Tune chose."""
    return [axis.level(values["levels"][axis.name]) for axis in plan.axes]


def _run_trial(
    setup: TrialSetup, plan: SweepPlan, options: SweepConfig, values: Mapping[str, Any]
) -> None:
    """Run one trial in Tune's actor and record its result in its folder."""
    trial = trial_of(plan, options, values, tune.get_context().get_trial_id() or "")
    config = trial.config(setup.base)
    folder, assets = run_folder(config, setup.driver), setup.assets_of(config)
    result = folder.call(results.read)
    if result is not None and result.scored:  # the driver was killed before it got the result
        _report_result(config.train.kimg, options, result)
        return
    try:
        if setup.workers.count > 1:
            callbacks = [TuneReportCallback()]
            ray_train.launch(
                config, assets.shards, assets.assets, setup.workers, callbacks, setup.driver
            )
        else:
            _run_in_actor(config, assets, setup.workers, options, folder)
    except Diverged as error:
        result = folder.call(results.record, "diverged", str(error), assets.num_classes)
        _report_result(config.train.kimg, options, result)
    else:
        folder.call(results.record, "finished")


def _report_result(kimg: float, options: SweepConfig, result: results.RunResult) -> None:
    """Report the metric that a search waits for; a diverged run has the worst value."""
    value = result.values.get(options.metric, 0.0)
    tune.report({"kimg": kimg, f"collapse/{options.metric}": value})


def _run_in_actor(
    given: Config, assets: RunAssets, workers: Workers, options: SweepConfig, folder: RunFolder
) -> None:
    torch.set_num_threads(workers.cpus)
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1 / options.trials_per_gpu)
    config, used = on_this_node(given), assets.assets
    if config.storage:
        used = assets_on_this_node(used, given.home, config)
    with tempfile.TemporaryDirectory(prefix="ganray-") as copies:
        is_population = options.design == "pbt"
        context = TuneContext(config, folder, Path(copies) if is_population else None)
        run_worker(config, assets.shards, used, context)


class TuneContext(DrivenContext):
    """Worker context of a run of one worker: checkpoints in its folder, metrics to Tune.

    Args:
        config: Config of the run.
        folder: The run folder.
        copies: For a member of a population, an empty folder for checkpoints of other members.
    """

    def __init__(self, config: Config, folder: RunFolder, copies: Path | None) -> None:
        super().__init__(config, folder=folder)
        self._gauges = Gauges(config.name)
        self._copies = copies

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Set gauges, which Ray exports to Prometheus."""
        self._gauges.set(metrics)

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, wait: Wait) -> None:
        """Report to Tune, which may end the run here; wait until the driver has received it."""
        shared = None
        if self._copies:  # another member may continue from this one
            wait()
            shared = tune.Checkpoint.from_directory(str(checkpoint))
        with confirm_stops(self.folder, wait):  # a driver that stops receives nothing
            tune.report(dict(metrics), checkpoint=shared)

    def checkpoint(self) -> Path | None:
        """Return the run's own, or the one Tune copies from another member, with own settings."""
        shared = tune.get_checkpoint() if self._copies else None
        if shared is None:
            return super().checkpoint()
        folder = Path(shared.to_directory(self._copies))
        (folder / CONFIG_FILE).write_text(json.dumps(to_dict(self._config), indent=2))
        return folder
