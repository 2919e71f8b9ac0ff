"""Ray Tune: many runs at a time, as many as the cluster has room for.

The only importer of ray.tune. A run of one worker is a function in an actor that the next run
takes over, so only the first waits for torch to be imported; a run of several workers starts a
Ray Train of its own (some 18 CPU-seconds). Either way it is a normal run in a folder of its own.
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
from typing import Any, ClassVar, Protocol

# Before ray is imported. Tune writes a log of each run in three formats, which the journal has
# already; changes the directory of its actors; would take Ctrl-C for itself; and prints a screen
# for each crash.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")

import torch
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from ganray.config.commands import SweepConfig
from ganray.config.schema import Config
from ganray.config.serialization import to_dict
from ganray.errors import UserError
from ganray.integrations import ray_train
from ganray.sweeps import results
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.datasets import RunAssets
from ganray.sweeps.design import SweepPlan, Trial, make_trial
from ganray.training.context import LocalContext
from ganray.training.launch import append_error, run_worker
from ganray.training.loop import Diverged
from ganray.training.plan import Cluster, Workers
from ganray.training.state import CONFIG_FILE

_TUNE = "tune"
"""Folder of Tune's own state, in the study's."""
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
"""Ray sends it to files as well."""
_HEAD = "node:__internal_head__"
"""A resource that each head node has one of."""


@dataclass(frozen=True)
class Job:
    """What all runs of a study have in common."""

    base: Config
    given: Mapping[Hashable, RunAssets]
    """By `Config.images_identity`."""
    workers: Workers
    """Of each run."""

    def given_to(self, config: Config) -> RunAssets:
        """What a run of this config is given."""
        return self.given[config.images_identity()]


class Watcher(Protocol):
    """Who is told on the driver how the study goes. Quick: Tune waits meanwhile."""

    def begin(self, trial: Trial, config: Config, levels: Sequence[Level]) -> None:
        """A run begins, or goes on; with the levels that a search chose for it, else none."""
        ...

    def again(self, trial: Trial, reason: str) -> None:
        """A run crashed and is tried again."""
        ...

    def halted(self, reason: str) -> None:
        """No run goes on for now."""
        ...

    def end(self, trial: Trial, result: results.RunResult) -> None:
        """A run is over."""
        ...


def max_concurrent(options: SweepConfig, workers: Workers, cluster: Cluster) -> int:
    """How many runs there is room for at a time, at least one."""
    if workers.gpu:
        share = options.trials_per_gpu if workers.count == 1 else 1
        most = min(cluster.gpus * share, cluster.cpus // workers.cpus) // workers.count
    else:
        most = cluster.cpus // (workers.cpus * workers.count)
    return max(1, min(most, options.concurrent or most))


def run(
    job: Job, study: SweepPlan, options: SweepConfig, folder: Path, at_a_time: int, watcher: Watcher
) -> None:
    """Run what is left of the study, until all is done; goes on with one that was interrupted.

    Args:
        job: what its runs have in common.
        study: what differs between them; of tpe and pbt the axes.
        options: how to go through it.
        folder: of the study. Tune's own state in it is unpickled: it must be the user's own.
        at_a_time: runs, as `room` has it.
        watcher: is told on this process.

    Raises:
        ValueError: Ray killed runs for want of memory more often than they may be tried.
    """
    _driver.job, _driver.study, _driver.options, _driver.watcher = job, study, options, watcher

    def ganray_trial(values: dict[str, Any]) -> None:  # its name is that of Tune's own records
        _run(job, study, options, values)

    trainable = tune.with_resources(ganray_trial, _resources(job.workers, options))
    known = results.collect(study, job.base.home / "runs")
    over = {t.name for t in study.trials if known.get(t).status not in ("waiting", "failed")}
    tries = 0
    while True:
        ended = len(_driver.ended)
        left = tuple(t for t in study.trials if t.name not in over | _driver.ended)
        if not (left or options.is_adaptive):
            return
        try:
            _tuner(trainable, job, replace(study, trials=left), options, folder, at_a_time).fit()
            return
        except RuntimeError as error:
            # Tune retries a run that dies, but falls over one that Ray kills for want of memory.
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
        tries = 0 if len(_driver.ended) > ended else tries + 1
        if tries > options.retries:
            can = at_a_time > 1 and not options.is_adaptive
            fewer = f", as with --sweep.concurrent {at_a_time // 2}" if can else ""
            raise UserError(
                "a node is short of memory: Ray kills runs before any of them ends; --resume goes"
                f" on from their checkpoints where they have more{fewer}"
            )
        watcher.halted("a node is short of memory, and Ray killed runs; they go on in 10 s")
        time.sleep(10)


def _tuner(
    trainable: Any, job: Job, study: SweepPlan, options: SweepConfig, folder: Path, at_a_time: int
) -> tune.Tuner:
    """One for these runs; of tpe and pbt, the one that was interrupted, if any was.

    What a restored one does is as it was begun, how many runs at a time too. So it is left to
    those of whose runs Tune alone knows; all others go on by their own folders.
    """
    path = str(folder / _TUNE)
    if options.is_adaptive and tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable, resume_errored=True)
    return tune.Tuner(
        trainable,
        param_space=_space(study, options),
        tune_config=_tune_config(job, study, options, at_a_time),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=options.retries),
            callbacks=[_Callback()],
        ),
    )


def _resources(workers: Workers, options: SweepConfig) -> Any:
    """What Tune holds for one run. Of several workers, Ray Train holds their own."""
    if workers.count > 1:
        return {_HEAD: 0.001}
    gpu = {"GPU": 1 / options.trials_per_gpu} if workers.gpu else {}
    return {"CPU": workers.cpus} | gpu


def _space(study: SweepPlan, options: SweepConfig) -> dict[str, Any]:
    if options.is_adaptive:
        return {"levels": {axis.name: _choice(axis) for axis in study.axes}}
    return {"trial": tune.grid_search([_plain(trial) for trial in study.trials])}


def _choice(axis: Axis) -> Any:
    if axis.range is None:
        return tune.choice(list(axis.labels))
    low, high = axis.range
    return tune.lograndint(int(low), int(high) + 1) if axis.whole else tune.loguniform(low, high)


def _plain(trial: Trial) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(trial)))


def _tune_config(
    job: Job, study: SweepPlan, options: SweepConfig, at_a_time: int
) -> tune.TuneConfig:
    metric = f"collapse/{options.metric}"
    return tune.TuneConfig(
        metric=metric if options.is_search else None,
        mode="max" if options.is_search else None,
        num_samples=options.num_trials if options.is_adaptive else 1,
        search_alg=_tpe(metric, at_a_time) if options.design == "tpe" else None,
        scheduler=_scheduler(job, study, options),
        # Tune's own limit breaks the searchers', and is not needed where a run's resources are
        # all that it takes.
        max_concurrent_trials=at_a_time if options.design != "tpe" else None,
        reuse_actors=job.workers.count == 1,
    )


def _tpe(metric: str, at_a_time: int) -> Any:
    import optuna  # which few need
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search: Searcher = OptunaSearch(
        metric=metric, mode="max", sampler=optuna.samplers.TPESampler(seed=0)
    )
    return ConcurrencyLimiter(search, max_concurrent=at_a_time)


def _scheduler(job: Job, study: SweepPlan, options: SweepConfig) -> TrialScheduler | None:
    kimg, rung = job.base.train.kimg, job.base.train.checkpoint_every
    if options.design == "asha":
        return ASHAScheduler(time_attr="kimg", max_t=kimg, grace_period=rung, reduction_factor=2)  # pyright: ignore[reportArgumentType]
    if options.design == "pbt":
        return PopulationBasedTraining(
            time_attr="kimg",
            perturbation_interval=rung,
            # A list is stepped through; what is drawn from would be multiplied by 0.8 or 1.2.
            hyperparam_mutations={
                "levels": {a.name: _choice(a) if a.range else list(a.labels) for a in study.axes}
            },
        )
    return None


class _Driver:
    """Where Tune's callback finds who watches: Tune pickles callbacks; watchers hold threads."""

    job: Job
    study: SweepPlan
    options: SweepConfig
    watcher: Watcher
    ended: ClassVar[set[str]] = set()
    """Names of the runs that came to something."""


_driver = _Driver()


class _Callback(tune.Callback):
    def on_step_begin(self, *_: Any, **info: Any) -> None:
        for one in info["trials"]:  # those that Tune restores are as they were begun
            one.max_failures = _driver.options.retries

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        this, values = self._trial(info["trial"]), info["trial"].config
        levels = levels_of(_driver.study, values) if "levels" in values else ()
        _driver.watcher.begin(this, this.config(_driver.job.base), levels)

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        self._end(info["trial"], "stopped", "by the scheduler, before its end")

    def on_trial_recover(self, *_: Any, **info: Any) -> None:
        this = self._trial(info["trial"])
        said = self._keep_error(info["trial"])
        _driver.watcher.again(this, said)

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        """When no retry is left."""
        self._end(info["trial"], "failed", self._keep_error(info["trial"]))

    def _keep_error(self, trial: Any) -> str:
        """Append the latest crash to the run's `error.txt` and return it as one line."""
        text = _COLOR.sub("", Path(trial.error_file).read_text())
        folder = self._trial(trial).config(_driver.job.base).run_folder()
        # Tune's file repeats earlier crashes, which are recorded already.
        path = append_error(folder, "Ray Tune", text.rpartition("Failure # ")[2])
        return f"{in_a_line(text)} (details: {path})"

    def _end(self, trial: Any, status: results.Status, why: str) -> None:
        this = self._trial(trial)
        config = this.config(_driver.job.base)
        folder = config.run_folder()
        if results.images_seen(folder) >= config.train.steps() * config.train.batch_size:
            status, why = "finished", ""  # stopped at its very end
        outcome = results.read(folder)
        if outcome is None or outcome.status == "failed":  # that is of an earlier try
            outcome = results.record(folder, status, why)
        if outcome.status != "failed":
            _driver.ended.add(this.name)
        _driver.watcher.end(this, outcome)

    def _trial(self, trial: Any) -> Trial:
        return trial_of(_driver.study, _driver.options, trial.config, trial.trial_id)


def in_a_line(errors: str) -> str:
    """The last of a trial's errors, as Tune writes them down: the exception, or how it died."""
    last = errors.rpartition("Failure # ")[2].splitlines()[1:]
    lines = [line.strip() for line in last if line.strip()] or ["no error message"]
    # What an actor raised ends with the exception; what Ray itself says begins with the point.
    return lines[-1] if lines[0].startswith("ray::") else lines[0].partition(". ")[0]


def trial_of(
    study: SweepPlan, options: SweepConfig, values: Mapping[str, Any], trial_id: str
) -> Trial:
    """The run that Tune's values stand for.

    One whose levels Tune chooses has a seed that follows from Tune's id for it, so that luck is
    not what the search finds. A member of a population keeps its name as its levels change.
    """
    if "trial" in values:
        given = values["trial"]
        return Trial(**(given | {"levels": tuple(given["levels"])}))
    levels = levels_of(study, values)
    seed = int.from_bytes(hashlib.sha256(trial_id.encode()).digest()[:2], "little")
    found = make_trial(study.name, levels, seed)
    if options.design == "pbt":
        return replace(found, name=f"{study.name}.member-{seed}", label=f"member-{seed}")
    return found


def levels_of(study: SweepPlan, values: Mapping[str, Any]) -> list[Level]:
    """A level of each axis, as Tune chose them."""
    return [axis.level(values["levels"][axis.name]) for axis in study.axes]


def _run(job: Job, study: SweepPlan, options: SweepConfig, values: Mapping[str, Any]) -> None:
    """One run, in Tune's actor. What it came to is written into its folder."""
    this = trial_of(study, options, values, tune.get_context().get_trial_id() or "")
    config = this.config(job.base)
    folder, given = config.run_folder(), job.given_to(config)
    found = results.read(folder)
    if found is not None and found.scored:  # the driver was killed before it heard of it
        _tell_end(config, options, found)
        return
    try:
        if job.workers.count > 1:
            ray_train.launch(
                config, given.shards, given.assets, job.workers, callbacks=[TuneReportCallback()]
            )
        else:
            _alone(config, job, options)
    except Diverged as error:
        _tell_end(
            config, options, results.record(folder, "diverged", str(error), given.num_classes)
        )
    else:
        results.record(folder, "finished")


def _tell_end(config: Config, options: SweepConfig, outcome: results.RunResult) -> None:
    """Give a search the figure that it waits for; that of a run that diverged is the worst."""
    score = outcome.values.get(options.metric, 0.0)
    tune.report({"kimg": config.train.kimg, f"collapse/{options.metric}": score})


def _alone(config: Config, job: Job, options: SweepConfig) -> None:
    torch.set_num_threads(job.workers.cpus)
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1 / options.trials_per_gpu)
    population = options.design == "pbt"
    given = job.given_to(config)
    run_worker(config, given.shards, given.assets, TuneContext(config, population))


class TuneContext(LocalContext):
    """A run of one worker as the loop sees it: checkpoints in its folder, figures to Tune."""

    def __init__(self, config: Config, population: bool) -> None:
        super().__init__(config.run_folder(), config.train.keep_checkpoints)
        self._config, self._population = config, population

    def report(self, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        """Keep the checkpoint and tell Tune, which may end the run here."""
        super().report(metrics, step, checkpoint)
        given = tune.Checkpoint.from_directory(str(checkpoint)) if self._population else None
        tune.report(dict(metrics), checkpoint=given)

    def latest_checkpoint(self) -> Path | None:
        """The run's own; in a population, the one that Tune hands over, under own settings."""
        given = tune.get_checkpoint() if self._population else None
        if given is None:
            return super().latest_checkpoint()
        folder = Path(given.to_directory(tempfile.mkdtemp()))
        (folder / CONFIG_FILE).write_text(json.dumps(to_dict(self._config), indent=2))
        return folder
