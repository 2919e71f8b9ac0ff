"""Run a sweep from its plan to its report: what jobs/sweep.py does.

This module sits above the integrations: it connects Ray Tune with MLflow.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ganray import log
from ganray.commands import train
from ganray.config.commands import SweepConfig, command_line
from ganray.config.schema import Config, fields_where
from ganray.config.serialization import check_resumes, to_dict, without_secrets
from ganray.data import prepare
from ganray.data.storage import open_storage
from ganray.errors import UserError
from ganray.files import read_json, write_atomic
from ganray.integrations import mlflow_view, ray_cluster, ray_tune
from ganray.integrations.mlflow_runs import (
    LOCAL_SERVER,
    check_store,
    log_addresses,
    run_url,
    store_uri,
)
from ganray.integrations.mlflow_sweep import SweepRuns, has_means, sync_sweep
from ganray.integrations.ray_driver import DriverNode
from ganray.sweeps import design, report, results
from ganray.sweeps.axes import DEFAULT_AXES, Axis, Level, parse_axis, share_reference
from ganray.sweeps.datasets import SweepDatasets
from ganray.sweeps.design import SweepPlan, Trial
from ganray.sweeps.progress import SweepProgress
from ganray.sweeps.results import Results, RunResult
from ganray.sweeps.summary import reference_notes
from ganray.training import launch
from ganray.training.plan import Workers, check_workers, format_rows, plan_rows, resolve_workers
from ganray.training.run_lock import lock_folder
from ganray.training.run_storage import pull_folder, stored_names, upload_folders
from ganray.training.state import CONFIG_FILE, read_config
from ganray.training.stopping import request_stop, wait_for_checkpoints

_OPTIONS_FILE = "sweep.json"
_REPORTS_PER_RUN = 8
"""Evaluations of a run that asha and pbt decide by."""
_FIXED = frozenset(
    {"train.kimg"} | {n for n in fields_where("sweep", "no") if n.startswith("evaluation.")}
)
"""Fields that a run alone may change on resume, but not a sweep, whose runs would not compare."""
_CHANGEABLE = ("rate", *sorted(fields_where("sweep", "live")))
"""Fields that may change during a run, as pbt changes them."""

ReadValue = Callable[[str, str], Any]
"""Function from (field, text) to the value of the field's type."""
logger = logging.getLogger(__name__)


def sweep(config: Config, options: SweepConfig, read: ReadValue) -> None:
    """Plan, run and report a sweep, or resume one.

    Args:
        config: Config that all runs have in common.
        options: Axes, design and number of seeds.
        read: Parser of the values of a field.

    Raises:
        UserError: The input is wrong; raised before any worker is started.
    """
    if options.resume:
        config, options = load_resumed(config, options)
    else:
        _pull(config, config.name)
    check_store(config)
    axes = [parse_axis(text, config, read) for text in options.axis or DEFAULT_AXES]
    config, axes = share_reference(base_config(config, options, axes), axes)
    plan = plan_sweep(config, options, axes)
    cluster = ray_cluster.cluster_resources(config.ray)
    workers = resolve_workers(config, cluster)
    datasets = SweepDatasets(config, validate_runs(plan, config, options, workers))
    concurrent = ray_tune.max_concurrent(options, workers, cluster)
    log_plan(plan, config, options, datasets, workers, concurrent)
    if config.dry_run:
        return
    folder, url = sweep_folder(config), config.storage
    with lock_folder(folder, url), upload_folders(url, lambda: _folders(config)):
        _run_locked(plan, config, options, datasets, workers, concurrent)


def _shared_folders(config: Config, datasets: SweepDatasets) -> list[Path]:
    """Return the folders that all nodes must be able to read."""
    if config.storage:
        return [] if "://" in config.storage else [Path(config.storage)]
    return datasets.local_folders()


def _folders(config: Config) -> list[Path]:
    """Return the folder of the sweep and those of its runs."""
    return [sweep_folder(config), *(config.home / "runs").glob(f"{config.name}.*")]


def _run_locked(
    plan: SweepPlan,
    config: Config,
    options: SweepConfig,
    datasets: SweepDatasets,
    workers: Workers,
    concurrent: int,
) -> None:
    """Prepare, run and report, as the only driver of the sweep."""
    datasets.prepare_datasets()
    launch.record_dataset(sweep_folder(config), *datasets.identity())
    assets = datasets.run_assets()
    save_sweep(plan, config, options)
    ray_cluster.connect(config.ray, has_trials=True)
    driver = DriverNode() if config.storage else None
    setup = ray_tune.TrialSetup(config, assets, workers, driver)
    tags = train.run_tags(config, workers)
    folder, training = config.home / "runs", set[str]()
    with (
        wait_for_checkpoints(folder, lambda: training, bool(config.storage)),
        sync_sweep(plan, config, datasets.dataset_info, tags) as runs,
    ):
        observer = SweepObserver(plan, config, options, runs, training)
        if observer.has_runs_left():
            try:
                # What has to be on all nodes is checked when they have been started.
                ray_cluster.wait_for_resources(config.ray, workers)
                ray_cluster.check_versions(config.ray)
                for shared in _shared_folders(config, datasets):
                    ray_cluster.check_shared(shared)
                ray_tune.run(setup, plan, options, sweep_folder(config), concurrent, observer)
            except (KeyboardInterrupt, SystemExit):
                for name in training:
                    request_stop(folder / name)
                logger.info("to resume   %s", resume_command(config))
                raise
        known = results.collect(observer.plan, folder)
        _report(known, config, options, runs)
    exit_if_failed(known, config)
    if runs.sync.has_given_up:
        sys.exit(train.NOT_SENT)


def exit_if_failed(known: Results, config: Config) -> None:
    """Exit with code 1 if a run crashed after its last retry; that one diverged is a result."""
    if failed := known.count("failed"):
        logger.error(
            "%d of %d runs failed; to retry: %s",
            failed,
            len(known.plan.trials),
            log.unbroken(resume_command(config)),
        )
        sys.exit(1)


def _pull(config: Config, name: str) -> None:
    """Download a sweep and its runs, without checkpoints, if they are in the storage."""
    storage = open_storage(config.storage)
    if storage is None or config.storage is None:
        return
    if not config.dry_run:
        storage.check()
    runs = stored_names(storage, "runs", CONFIG_FILE)
    pull_folder(config.home / "sweeps" / name, config.storage)
    for run in runs:
        if run.startswith(f"{name}."):
            pull_folder(config.home / "runs" / run, config.storage)


def sweep_folder(config: Config) -> Path:
    """Return the folder of the sweep's plan, Tune state and report; runs have folders elsewhere."""
    return config.home / "sweeps" / config.name


def resume_command(config: Config) -> str:
    """Return the command line that resumes the sweep."""
    words = ["--storage", without_secrets(config.storage)] if config.storage else []
    return command_line("sweep", "--resume", "--name", config.name, *words, home=config.home)


def load_resumed(config: Config, options: SweepConfig) -> tuple[Config, SweepConfig]:
    """Return config and options of the sweep to resume: that of config.name, else the newest.

    With a storage it is downloaded; without config.name, there must be a single one.
    """
    if (storage := open_storage(config.storage)) is not None:
        names = [config.name] if config.name else stored_names(storage, "sweeps", _OPTIONS_FILE)
        if len(names) != 1:
            raise UserError(
                f"sweep.resume: {storage} holds {len(names)} sweeps ({', '.join(names)}); give the"
                " --name of one"
            )
        config = replace(config, name=names[0])
        _pull(config, config.name)
    files = config.home.glob(f"sweeps/{config.name or '*'}/{_OPTIONS_FILE}")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        named = f" named {config.name!r}" if config.name else ""
        place = f"{storage} or {config.home}" if storage else config.home
        raise UserError(f"sweep.resume: {place} holds no sweep{named} to resume")
    saved, saved_options = _load_sweep(newest.parent)
    if saved.storage and not config.storage:
        return load_resumed(replace(config, name=saved.name, storage=saved.storage), options)
    if saved_options.is_adaptive and options.concurrent is None:
        options = replace(options, concurrent=saved_options.concurrent)
    # A URL is saved without its password, so it may be given again.
    data = replace(saved.data, root=config.data.root or saved.data.root)
    return (
        replace(
            saved,
            home=config.home,
            storage=config.storage or saved.storage,
            data=data,
            ray=config.ray,
            dry_run=config.dry_run,
        ),
        replace(saved_options, concurrent=options.concurrent, retries=options.retries),
    )


def base_config(config: Config, options: SweepConfig, axes: Sequence[Axis]) -> Config:
    """Return the config of the runs: no report of their own, one worker unless given.

    Downloads the images unless an axis varies them.
    """
    if not config.evaluation.samples:
        raise UserError("evaluation.samples=0: a sweep compares metrics; use 80 or more")
    if config.init_from:
        raise UserError(
            f"init_from={config.init_from}: the runs of a sweep start from random weights, which"
            " their seeds decide; leave it out"
        )
    if config.launcher != "ray" or config.check_discriminator:
        raise UserError(
            "a sweep runs on Ray and trains both networks; remove --launcher torch and"
            " --check_discriminator"
        )
    if config.ray.is_elastic():
        raise UserError(
            f"ray.workers={config.ray.workers}: the runs of a sweep have a fixed number of workers;"
            " leave out the range, or train a single run"
        )
    evaluation, training = replace(config.evaluation, report_samples=0), config.train
    if options.is_search:
        every = training.kimg / _REPORTS_PER_RUN
        evaluation = replace(evaluation, every=every, max_share=1.0)
        training = replace(training, checkpoint_every=every)
    ray, data = replace(config.ray, workers=config.ray.workers or 1), config.data
    varied = {field for axis in axes for field in axis.fields}
    if not config.dry_run and varied.isdisjoint(("data.source", "data.root", "data.download")):
        data = prepare.fetch(data, config.home)
    return replace(config, data=data, evaluation=evaluation, train=training, ray=ray)


def plan_sweep(config: Config, options: SweepConfig, axes: Sequence[Axis]) -> SweepPlan:
    """Return the saved plan of this name, or a new one."""
    if options.is_adaptive:
        plan = SweepPlan(config.name, tuple(axes), ())
    else:
        sampling: design.Design = "grid"
        if options.design in ("random", "sobol"):
            sampling = options.design
        elif options.design == "asha" and options.settings:
            sampling = "random"
        plan = design.make_plan(
            config.name,
            axes,
            options.seeds,
            design=sampling,
            settings=options.settings,
            first_seed=config.train.rng_seed,
        )
    folder = sweep_folder(config)
    if not (folder / design.FILE).exists():
        return plan
    saved = design.load_plan(folder)
    _check_comparable(config, options)
    if [axis.name for axis in saved.axes] != [axis.name for axis in axes] or (
        plan.trials and plan != saved
    ):
        raise UserError(
            f"sweep {config.name!r} exists with other axes or runs; use another --name, or resume"
            f" it unchanged: {resume_command(config)}"
        )
    return saved


def _check_comparable(config: Config, options: SweepConfig) -> None:
    """Reject options under which new runs would not be comparable with those of the saved sweep."""
    saved, saved_options = _load_sweep(sweep_folder(config))
    fixed = ["design", *(["metric"] if options.is_search else [])]
    fixed += ["settings", "concurrent"] if options.is_adaptive else []  # Tune restores them
    for name in fixed:
        old, new = getattr(saved_options, name), getattr(options, name)
        if old != new:
            raise UserError(
                f"sweep.{name}={new}: sweep {config.name!r} was started with {old}, which cannot"
                f" change; use another --name, or resume it: {resume_command(config)}"
            )
    # A single run may train longer or be evaluated otherwise; the runs of a sweep must not differ.
    check_resumes(saved, config, fixed=_FIXED)


def _load_sweep(folder: Path) -> tuple[Config, SweepConfig]:
    remedy = "start the sweep under another --name; its runs are kept"
    options = read_json(folder / _OPTIONS_FILE, remedy)
    try:
        return read_config(folder), SweepConfig(**options)
    except TypeError as error:
        raise UserError(f"{folder / _OPTIONS_FILE}: damaged ({error}); {remedy}") from error


def validate_runs(
    plan: SweepPlan, config: Config, options: SweepConfig, workers: Workers
) -> list[Config]:
    """Return the configs of all runs, for adaptive designs of the extreme settings, or raise."""
    if options.design == "tpe" and importlib.util.find_spec("optuna") is None:
        raise UserError("sweep.design=tpe needs Optuna: pip install optuna, or use another design")
    if options.trials_per_gpu > 1 and workers.gpu and workers.count > 1:
        raise UserError(
            f"sweep.trials_per_gpu={options.trials_per_gpu} needs runs of one worker, but"
            f" ray.workers={workers.count}; remove one of them"
        )
    for field in sorted(field for axis in plan.axes for field in axis.fields):
        if options.design == "pbt" and field not in _CHANGEABLE:
            raise UserError(
                f"sweep.axis: {field} cannot change during a run, which sweep.design=pbt requires;"
                f" use some of {', '.join(_CHANGEABLE)}"
            )
    configs = []
    extremes = itertools.product(*(axis.extremes for axis in plan.axes))
    for levels in extremes if options.is_adaptive else ():
        try:
            configs.append(design.make_trial(plan.name, levels, 0).config(config))
            check_workers(configs[-1], workers.count)
        except UserError as error:
            raise UserError(
                f"sweep.design={options.design} may draw an invalid setting: {error}; use values"
                " that are valid in every combination"
            ) from error
    for trial in plan.trials:
        configs.append(trial.config(config))
        check_workers(configs[-1], workers.count)
        path = configs[-1].run_folder() / CONFIG_FILE
        if path.exists() and options.design != "pbt":
            check_resumes(read_config(path.parent), configs[-1])
    return configs


def log_plan(
    plan: SweepPlan,
    config: Config,
    options: SweepConfig,
    datasets: SweepDatasets,
    workers: Workers,
    concurrent: int,
) -> None:
    """Log what the sweep runs."""
    if any(one.images.procedural for one in datasets):
        train.warn_procedural_faces()
    runs = f"{options.num_trials} runs"
    if not options.is_adaptive:
        seeds = len({trial.rng_seed for trial in plan.trials})
        runs = f"{len(plan.settings)} settings x {seeds} seeds = {len(plan.trials)} runs"
    rows = {
        "sweep": f"{config.name} (to resume: {log.unbroken(resume_command(config))})",
        "runs": f"{runs}, {options.design}, {concurrent} at a time",
    }
    for axis in plan.axes:
        levels = "{:g} .. {:g}".format(*axis.range) if axis.range else ", ".join(axis.labels)
        rows[axis.title] = levels
    rows["each run"] = "apart from the axes:"
    rows |= plan_rows(datasets.shown, workers)
    if notes := " ".join(reference_notes(plan.axes)):
        rows["reference"] = notes
    rows["results"] = f"{log.unbroken(sweep_folder(config))} and {log.unbroken(store_uri(config))}"
    logger.info(format_rows(rows))
    if options.is_search:
        logger.info(
            "%s searches one good setting: it chooses or stops runs by their results, so the means"
            " are biased and the effects of the axes cannot be estimated",
            options.design,
        )


def save_sweep(plan: SweepPlan, config: Config, options: SweepConfig) -> None:
    """Write config, options and plan into the folder of the sweep."""
    folder = sweep_folder(config)
    saved_options = asdict(replace(options, resume=False))
    write_atomic(folder / CONFIG_FILE, json.dumps(to_dict(config), indent=2))
    write_atomic(folder / _OPTIONS_FILE, json.dumps(saved_options, indent=2))
    plan.save(folder)  # last: a folder with a plan has all three files


class SweepObserver:
    """Receiver of Tune's events, which passes them on to the terminal and MLflow.

    Keeps `training`, the names of the runs that train, up to date.
    """

    def __init__(
        self,
        plan: SweepPlan,
        base: Config,
        options: SweepConfig,
        runs: SweepRuns,
        training: set[str],
    ) -> None:
        self.plan, self._base, self._options, self._runs = plan, base, options, runs
        self._known = results.collect(plan, base.home / "runs")
        self.progress = SweepProgress(self._known, training)

    def has_runs_left(self) -> bool:
        """Return whether any run has to be started or retried."""
        if self._options.is_adaptive:
            return len(self._known.by_trial) < self._options.num_trials
        return self._known.count("waiting", "failed") > 0

    def begin(self, trial: Trial, config: Config, levels: Sequence[Level]) -> None:
        """Handle the start or restart of a run; `levels` are those that a search has chosen."""
        if levels:
            self.plan = self.progress.plan = self.plan.with_trial(trial, levels)
            self.plan.save(sweep_folder(self._base))
        launch.create_run_folder(config, changed=self._options.design == "pbt")
        self._runs.begin(trial, config)
        self.progress.begin(trial)

    def retry(self, trial: Trial, reason: str) -> None:
        """Handle the crash of a run that is retried."""
        self.progress.retry(trial, reason)

    def pause(self, reason: str) -> None:
        """Handle a pause of all runs."""
        self.progress.pause(reason)

    def end(self, trial: Trial, result: RunResult) -> None:
        """Handle the end of a run."""
        self._runs.end(trial, result)
        self.progress.end(trial, result)


def _report(known: Results, config: Config, options: SweepConfig, runs: SweepRuns) -> None:
    plan = known.plan
    written = report.write(
        known,
        config,
        sweep_folder(config),
        censored=options.is_search,
        commit=train.git_commit() or "",
    )
    logger.info(written.text)
    runs.log_report(written.files, written.markdown, written.metrics)
    logger.info("report      %s", written.html)
    # A search chooses its runs by their results, so their means would mislead.
    means = not options.is_search and has_means(plan)
    _log_mlflow_urls(plan, runs, store_uri(config), means)
    if means:
        runs.log_means(written.ranking)
    if url := ray_cluster.job_url():
        logger.info("ray         %s", url)


def _log_mlflow_urls(plan: SweepPlan, runs: SweepRuns, uri: str, means: bool) -> None:
    """Save the views of the sweep, and log where to look."""
    server = uri if uri.startswith("http") else LOCAL_SERVER
    urls = runs.sync.flush_and_call(
        lambda: mlflow_view.save_views(runs.parent, plan, server, has_means=means)
    )
    if urls is None:  # MLflow is unreachable, which has been logged
        return
    log_addresses(uri, run_url(runs.parent))
    title, url = next(iter(urls.items()))
    logger.info("charts      %s", url)
    logger.info("            which is the view %r; others are under Views there", title)
