"""A study from its plan to its answer: what jobs/sweep.py does.

Sits above the vendors, as `job` does: here Tune meets MLflow.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ganray.commands import train
from ganray.config.commands import SweepConfig
from ganray.config.schema import Config
from ganray.config.serialization import check_resumes, from_dict, to_dict
from ganray.data import prepare
from ganray.errors import UserError
from ganray.integrations import mlflow_sync, mlflow_view, ray_train, ray_tune
from ganray.integrations.mlflow_sweep import SweepRuns
from ganray.sweeps import design, report, results, summary
from ganray.sweeps.axes import Axis, Level, parse_axis, share_reference
from ganray.sweeps.datasets import SweepDatasets
from ganray.sweeps.design import SweepPlan, Trial
from ganray.sweeps.progress import SweepProgress
from ganray.sweeps.results import RunResult
from ganray.training import launch
from ganray.training.plan import Workers, check_workers, format_rows, plan_rows, resolve_workers
from ganray.training.state import CONFIG_FILE

LATENTS = (
    "latent.distribution+latent.scaling=uniform+raw,uniform+centred,uniform+standardised,normal+raw",
    "latent.size=1,10,100",
    "optimizer=sgd,rmsprop,adam",
)
"""What is varied where nothing is named. From each distribution to the next one thing changes: the
mean, then the spread, then the shape."""
_OPTIONS = "sweep.json"
_RUNGS = 8
"""Times at which asha and pbt look at a run."""
_LIVE = ("rate", "optimizer.lr_G", "optimizer.lr_D", "optimizer.beta1", "optimizer.beta2")
_LIVE += ("loss.r1_gamma", "loss.r2_gamma", "loss.gp_weight")
_LIVE += ("latent.distribution", "latent.scaling", "latent.offset")
"""What a run can change and still go on, as pbt asks of it."""

Read = Callable[[str, str], Any]


def sweep(config: Config, options: SweepConfig, read: Read) -> None:
    """Run one study to its end, and answer it.

    Args:
        config: what all its runs have in common.
        options: what differs, and how the study is gone through.
        read: (field, text) -> the value, of the field's type.

    Raises:
        ValueError: bad input, found before a worker is held.
    """
    if options.resume:
        config, options = _left_behind(config, options)
    axes = [parse_axis(text, config, read) for text in options.axis or LATENTS]
    config, axes = share_reference(_for_trials(config, options, axes), axes)
    study = _planned(config, options, axes)
    cluster = ray_train.cluster_resources(config.ray)
    workers = resolve_workers(config, cluster)
    configs = _check(study, config, options, workers)
    images = SweepDatasets(config, configs)
    at_a_time = ray_tune.max_concurrent(options, workers, cluster)
    _show(study, config, options, images, workers, at_a_time)
    if config.dry_run:
        return
    images.prepare_datasets()
    launch.record_dataset(sweep_folder(config), *images.identity())
    shared = ray_tune.Job(config, images.run_assets(), workers)
    _claim(study, config, options)
    ray_train.connect(config.ray)
    for where in images.local_folders():
        ray_train.check_nodes_see(where)
    runs = SweepRuns(study, config, images.dataset_info, train.tags_of(config, workers))
    with _closed(runs):
        watch = _Watch(study, config, options, runs)
        if watch.left():
            ray_tune.run(shared, study, options, sweep_folder(config), at_a_time, watch)
        print(watch.board.table(), flush=True)
        _answer(watch.study, config, options, runs)


def sweep_folder(config: Config) -> Path:
    """Plan, Tune's state and answer of the study; its runs are where all runs are."""
    return config.home / "sweeps" / config.name


def _left_behind(config: Config, options: SweepConfig) -> tuple[Config, SweepConfig]:
    """The study to resume, as it was begun: that of the name, else the newest."""
    begun = config.home.glob(f"sweeps/{config.name or '*'}/{_OPTIONS}")
    newest = max(begun, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        named = f" called {config.name!r}" if config.name else ""
        raise UserError(f"sweep.resume: {config.home} holds no study{named} to go on with")
    before, kept = _begun(newest.parent)
    if kept.is_adaptive and options.concurrent is None:
        options = replace(options, concurrent=kept.concurrent)
    # A URL is kept without its password.
    data = replace(before.data, root=config.data.root or before.data.root)
    return (
        replace(before, home=config.home, data=data, ray=config.ray, dry_run=config.dry_run),
        replace(kept, concurrent=options.concurrent, retries=options.retries),
    )


def _for_trials(config: Config, options: SweepConfig, axes: Sequence[Axis]) -> Config:
    """The config of a run that is one of many: no report of its own, one worker if none is said.

    Fetches its images, unless an axis chooses others.
    """
    if not config.evaluation.samples:
        raise UserError(
            "evaluation.samples=0 measures nothing, and a study compares what is measured; give 80"
            " or more"
        )
    if config.launcher != "ray" or config.check_discriminator:
        raise UserError(
            "a study runs on Ray and trains both networks; leave out --launcher torch"
            " and --check-discriminator"
        )
    evaluation, train = replace(config.evaluation, report_samples=0), config.train
    if options.is_search:  # which look at figures as they come
        rung = train.kimg / _RUNGS
        evaluation = replace(evaluation, every=rung, max_share=1.0)
        train = replace(train, checkpoint_every=rung)
    ray, data = replace(config.ray, workers=config.ray.workers or 1), config.data
    named = {field for axis in axes for field in axis.fields}
    if not config.dry_run and named.isdisjoint(("data.source", "data.root", "data.download")):
        data = prepare.fetch(data, config.home)
    return replace(config, data=data, evaluation=evaluation, train=train, ray=ray)


def _planned(config: Config, options: SweepConfig, axes: Sequence[Axis]) -> SweepPlan:
    """The study by this name as it stands, or a new one."""
    if options.is_adaptive:
        study = SweepPlan(config.name, tuple(axes), ())
    else:
        some = options.design if options.design in ("random", "sobol") else "grid"
        if options.design == "asha" and options.settings:
            some = "random"
        study = design.make_plan(
            config.name,
            axes,
            options.seeds,
            design=some,
            settings=options.settings,
            first_seed=config.train.rng_seed,
        )
    folder = sweep_folder(config)
    if not (folder / design.FILE).exists():
        return study
    before = design.load_plan(folder)
    _check_goes_on(config, options)
    if [axis.name for axis in before.axes] != [axis.name for axis in axes] or (
        study.trials and study != before
    ):
        raise UserError(
            f"study {config.name!r} exists with other axes or runs; use another --name, or"
            f" --resume --name {config.name} to go on with it as it was begun"
        )
    return before


def _check_goes_on(config: Config, options: SweepConfig) -> None:
    """Refuse to go on with a study by runs that those it has do not compare with."""
    base, before = _begun(sweep_folder(config))
    asked = ["design", *(["metric"] if options.is_search else [])]
    asked += ["settings", "concurrent"] if options.is_adaptive else []  # which Tune restores
    for name in asked:
        old, new = getattr(before, name), getattr(options, name)
        if old != new:
            raise UserError(
                f"sweep.{name}={new}: study {config.name!r} was begun with {old}, which"
                f" stays; use another --name, or only --resume --name {config.name}"
            )
    # A run alone may go on for longer, and be measured in another way.
    check_resumes(base, config, keep=("train.kimg", "evaluation."))


def _begun(folder: Path) -> tuple[Config, SweepConfig]:
    """What the study in this folder was asked."""
    config = from_dict(json.loads((folder / CONFIG_FILE).read_text()))
    return config, SweepConfig(**json.loads((folder / _OPTIONS).read_text()))


def _check(
    study: SweepPlan, config: Config, options: SweepConfig, workers: Workers
) -> list[Config]:
    """Refuse what would fail in a run; returns the configs, of what is chosen those at the ends."""
    if options.design == "tpe" and importlib.util.find_spec("optuna") is None:
        raise UserError(
            'sweep.design=tpe needs Optuna: pip install -e ".[search]", or use another design'
        )
    for axis in study.axes if options.design == "pbt" else ():
        for field in axis.name.split("+"):
            if field not in _LIVE:
                raise UserError(
                    f"sweep.axis: {field} cannot change while a run goes on, as sweep.design=pbt"
                    f" does it; name some of {', '.join(_LIVE)}"
                )
    configs = []
    for cell in itertools.product(*(a.extremes for a in study.axes)) if options.is_adaptive else ():
        try:
            configs.append(design.make_trial(study.name, cell, 0).config(config))
            check_workers(configs[-1], workers.count)
        except ValueError as error:
            raise UserError(
                f"sweep.design={options.design} may draw what cannot be: {error}; name values that"
                " all go together"
            ) from error
    for trial in study.trials:
        one = trial.config(config)
        configs.append(one)
        check_workers(one, workers.count)
        if (path := one.run_folder() / CONFIG_FILE).exists() and options.design != "pbt":
            check_resumes(from_dict(json.loads(path.read_text())), one)
    if options.trials_per_gpu > 1 and workers.gpu and workers.count > 1:
        raise UserError(
            f"sweep.trials_per_gpu={options.trials_per_gpu} is for runs of one worker, and"
            f" ray.workers={workers.count}; leave one of them out"
        )
    return configs


def _show(
    study: SweepPlan,
    config: Config,
    options: SweepConfig,
    images: SweepDatasets,
    workers: Workers,
    at_a_time: int,
) -> None:
    if any(one.images.drawn for one in images):
        train.warn_procedural_faces()
    if not options.is_adaptive:
        seeds = len({trial.rng_seed for trial in study.trials})
        count = f"{len(study.settings)} cells x {seeds} seeds = {len(study.trials)} runs"
    else:
        count = f"{options.num_trials} runs"
    rows = {
        "study": f"{config.name} (stopped? --resume --name {config.name} goes on)",
        "runs": f"{count}, {options.design}, {at_a_time} at a time",
    }
    for axis in study.axes:
        levels = "{:g} .. {:g}".format(*axis.range) if axis.range else ", ".join(axis.labels)
        rows[axis.title] = levels
    rows["each run"] = "but for what is varied:"
    rows |= plan_rows(images.shown, workers)
    if judges := " ".join(summary.judges(study.axes)):
        rows["judges"] = judges
    rows["results"] = f"{sweep_folder(config)} and {mlflow_sync.store_uri(config)}"
    print(format_rows(rows))
    if options.is_search:
        print(
            f"{options.design} looks for one good setting: it chooses or stops runs by their"
            " results, so its means are censored and say nothing of effects"
        )
    sys.stdout.flush()


def _claim(study: SweepPlan, config: Config, options: SweepConfig) -> None:
    """Make the study's folder."""
    folder = sweep_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=2))
        (folder / _OPTIONS).write_text(json.dumps(asdict(replace(options, resume=False)), indent=2))
        study.save(folder)  # last: a folder that holds it holds the others
    except OSError as error:
        raise UserError(
            f"home={config.home} cannot be written ({error.strerror}); give another --home"
            " or set GANRAY_HOME"
        ) from error


@contextmanager
def _closed(runs: SweepRuns) -> Iterator[None]:
    """Around the study: whatever ends it, MLflow hears of it."""
    try:
        yield
    except KeyboardInterrupt:
        runs.close("KILLED", seconds=20)
        raise
    except SystemExit:  # SIGTERM, as from `ray job stop`, which kills three seconds later
        runs.close("KILLED")
        raise
    except BaseException:
        runs.close("FAILED")
        raise
    runs.close("FINISHED")


class _Watch:
    """Hears from Tune how the study goes, and tells the terminal and MLflow."""

    def __init__(
        self, study: SweepPlan, base: Config, options: SweepConfig, runs: SweepRuns
    ) -> None:
        self.study, self._base, self._options, self._runs = study, base, options, runs
        self._known = results.collect(study, base.home / "runs")
        self.board = SweepProgress(study, self._known)

    def left(self) -> bool:
        """Whether any run is still to be made, or to be tried again."""
        if self._options.is_adaptive:
            return len(self._known.by_trial) < self._options.num_trials
        return self._known.count("waiting", "failed") > 0

    def begin(self, trial: Trial, config: Config, levels: Sequence[Level]) -> None:
        """A run begins, or goes on."""
        if levels:
            self.study = self.study.with_trial(trial, levels)
            self.study.save(sweep_folder(self._base))
            self.board.grow(self.study)
        launch.create_run_folder(config, changed=self._options.design == "pbt")
        self._runs.begin(trial, config)
        self.board.begin(trial)

    def again(self, trial: Trial, why: str) -> None:
        """A run crashed and is tried again."""
        self.board.again(trial, why)

    def halted(self, why: str) -> None:
        """No run goes on for now."""
        self.board.halted(why)

    def end(self, trial: Trial, outcome: RunResult) -> None:
        """A run is over."""
        self._runs.end(trial, outcome)
        self.board.end(trial, outcome)


def _answer(study: SweepPlan, config: Config, options: SweepConfig, runs: SweepRuns) -> None:
    collected = results.collect(study, config.home / "runs")
    found = report.write(
        collected,
        config,
        sweep_folder(config),
        censored=options.is_search,
        commit=train.git_commit() or "",
    )
    print(found.text)
    runs.log_report(found.files, found.note, found.metrics)
    print(f"answer      {found.page}")
    _say_where_to_look(runs.parent, study)


def _say_where_to_look(run: mlflow_sync.Run, study: SweepPlan) -> None:
    """The command that serves a local store, and the addresses of the study's ready views."""
    server = run.uri if run.uri.startswith("http") else "http://127.0.0.1:5000"
    if server != run.uri:
        print(f"look        mlflow ui --backend-store-uri {run.uri}")
    try:
        for view in mlflow_view.save_views(run, study):
            address = mlflow_view.view_url(server, run.experiment_id, view.key)
            print(f"            {view.title}: {address}")
    except mlflow_sync.REFUSED as error:
        print(f"MLflow at {run.uri}: {mlflow_sync.first_line(error)}; it has no ready views yet")
    sys.stdout.flush()
