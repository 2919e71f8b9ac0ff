"""MLflow's pages on a study: charts that are ready when the page is opened.

MLflow's own chart page shows the parent alone, as children are folded away, and hundreds of
charts in alphabetical order. A saved view is an experiment tag that the page reads; it says which
runs, how they are grouped, and which charts. Its format is MLflow's own and undocumented, as of
3.17; tests/integrations/test_mlflow_browser.py opens what is written here.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode

from mlflow import MlflowClient

from ganray.integrations.mlflow_sweep import (
    NOTE_TAG,
    SETTING_TAG,
    SWEEP_TAG,
    axis_key,
    setting_name,
)
from ganray.integrations.mlflow_sync import Run
from ganray.sweeps.axes import SEED, Axis
from ganray.sweeps.design import SweepPlan
from ganray.sweeps.results import RANKED

_VIEW_TAG = "mlflow.sharedViewState."
_MOST_LINES = 24
"""More groups than this in one chart tell nothing."""
_LOADED = 100
"""Runs that the page loads before *Load more* is pressed; averages are over those it has."""
_UNUSED = ("collapse", "D", "data", "time", "memory", "system", "final")
"""Prefixes of metrics without a chart here; MLflow adds a section for each, which stay closed."""
_NOTE = """\
Each run trains one GAN; what is compared is how far it collapsed.

**Higher is better:** `collapse/recall` and `collapse/coverage`, the share of the real images that \
the generator comes near, and `collapse/vendi_share`, its variety as a share of theirs.
**Lower is better:** `collapse/kl_corrected`, how unevenly it serves the classes.
The x-axis counts images seen by D. `final/...` are the values at a run's end; a run that diverged \
has the worst ones, a run that crashed or was stopped early has none.

A *study* is a parent run with a child run for each trial. Under **Views** (above the charts) each \
has a ready comparison: every run, and averages over runs by each thing that was varied. The page \
loads 100 runs and averages over those alone until **Load more** (below the runs) is pressed. The \
parent's artifacts hold the answer, with intervals over the replicates.
"""


@dataclass(frozen=True)
class View:
    """One saved view."""

    title: str
    """In MLflow's list of views."""
    key: str
    """In the view's address."""


def save_views(run: Run, study: SweepPlan) -> list[View]:
    """Save views of the study, the one to open first leading; also describes the experiment.

    There is one of the averages over each axis's levels, of the cells if there are several axes,
    of every run, and of one run of each cell, for its pictures. Saved again, as the study grows,
    they replace each other; other studies' views stay.

    Args:
        run: the parent. The trials' folders are beside its own.
        study: its trials are shown.

    Raises:
        MlflowException, OSError: the store takes nothing.
    """
    client = MlflowClient(tracking_uri=run.uri)
    if NOTE_TAG not in client.get_experiment(run.experiment_id).tags:  # someone's own words stay
        client.set_experiment_tag(run.experiment_id, NOTE_TAG, _NOTE)
    newest_first = reversed(_pages(study))  # as MLflow lists them
    return [_save(client, run, study, page) for page in newest_first][::-1]


def view_url(base_url: str, experiment_id: str, key: str) -> str:
    """Where a saved view is shown; `base_url` is the MLflow server's."""
    query = {
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
        "viewStateShareKey": key,
    }
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def compare_url(base_url: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """MLflow's page on these runs, for a server that knows no saved views."""
    runs, experiments = (quote(json.dumps(ids)) for ids in (list(run_ids), [experiment_id]))
    return f"{base_url.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}"


@dataclass(frozen=True)
class _Groups:
    """Runs that agree in a param or a tag."""

    mode: Literal["param", "tag"]
    key: str
    values: Sequence[str]


@dataclass(frozen=True)
class _Page:
    """What one view shows."""

    words: str
    """Its title, without the study's."""
    sections: Sequence[str]
    grouped_by: _Groups | None = None
    """Charts draw averages over the runs of a group; None: single runs."""
    rng_seed: int | None = None
    """Of this replicate alone."""


def _pages(study: SweepPlan) -> list[_Page]:
    averages = [_TRAINING, _END, _LOSSES]
    varied = [axis for axis in study.axes if len(axis.levels) > 1]
    pages = [_Page(f"by {axis.title}", averages, _levels(axis)) for axis in varied]
    if len(varied) > 1 and len(study.settings) <= _MOST_LINES:
        cells = _Groups("tag", SETTING_TAG, [setting_name(cell) for cell in study.settings])
        pages.append(_Page("by setting", averages, cells))
    every = [_TRAINING, _END, _SETTINGS, _SAMPLES, _LOSSES, _DIFFERENCES]
    pages.append(_Page("every run", every))
    first = min(trial.rng_seed for trial in study.trials)
    pictures = [_SAMPLES, _TRAINING, _END, _DIFFERENCES]
    pages.append(_Page(f"samples of seed {first}", pictures, rng_seed=first))
    return pages


def _levels(axis: Axis) -> _Groups:
    key = axis_key(axis)
    is_field = key == axis.name  # whose values stand for the levels
    values = [str(v.overrides[key]) if is_field else v.label for v in axis.levels]
    return _Groups("param", key, values)


def _save(client: MlflowClient, run: Run, study: SweepPlan, page: _Page) -> View:
    view = View(f"{study.name} {page.words}", f"{study.name}-{page.words}".replace(" ", "-"))
    now, state = int(time.time() * 1000), _state(study, page, _last_picture(run, study))
    # PackedDiscriminator as MLflow packs its own: a tag holds 20000 characters.
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    value = {
        "name": view.title,
        "createdAt": now,
        "updatedAt": now,
        "state": f"deflate;{packed}",
    }
    client.set_experiment_tag(run.experiment_id, _VIEW_TAG + view.key, json.dumps(value))
    return view


def _last_picture(run: Run, study: SweepPlan) -> int:
    """Images seen at the newest picture that most runs have; the page shows one step at a time."""
    folders = [run.folder.parent / trial.name / "samples" for trial in study.trials]
    newest = [max(files) for folder in folders if (files := list(folder.glob("*.png")))]
    steps = Counter(int(file.stem) for file in newest)
    return max(steps, key=lambda step: (steps[step], step), default=0)


_TRAINING = "Variety while training (of KL, lower is better)"
_END = "Variety at the end"
_SETTINGS = "From settings to variety"
_SAMPLES = "Samples"
_LOSSES = "Losses"
_DIFFERENCES = "Differences"
_LAYOUT = {
    _TRAINING: (3, 360),
    _END: (3, 360),
    _SETTINGS: (1, 420),
    _SAMPLES: (1, 640),
    _LOSSES: (2, 320),
    _DIFFERENCES: (1, 480),
}
"""Charts in a row, and their height in pixels."""


def _state(study: SweepPlan, page: _Page, step: int) -> dict[str, Any]:
    keys = [axis_key(axis) for axis in study.axes]
    wanted = f"tags.`{SWEEP_TAG}` = '{study.name}'"
    if page.rng_seed is not None:
        wanted += f" AND params.`{SEED}` = '{page.rng_seed}'"
    groups = page.grouped_by
    columns = [f"params.`{key}`" for key in keys]
    columns += [f"metrics.`final/{name}`" for name in (*RANKED, "modes_held", "diverged")]
    charts = _charts(keys, step)
    shown = [chart for name in page.sections for chart in charts[name]]
    # Where no chart has the pictures, MLflow would add one.
    unwanted = (
        [] if _SAMPLES in page.sections else [c | {"deleted": True} for c in charts[_SAMPLES]]
    )
    sections = [_section(name, *_LAYOUT[name]) for name in page.sections]
    trials = [t for t in study.trials if page.rng_seed in (None, t.rng_seed)]
    is_part = len(trials) > _LOADED
    if is_part:
        first = f"{sections[0]['name'].partition(' (')[0]}: {_LOADED} of {len(trials)} runs"
        sections[0]["name"] = f"{first} (press Load more)"
    return {
        "searchFilter": wanted,
        # The best come first, unless that left the others out: then one replicate after another,
        # which have each level about as often. By start_time, MLflow would fetch the parent too.
        "orderByKey": f"params.`{SEED}`" if is_part else "metrics.`final/coverage`",
        "orderByAsc": is_part,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL" if groups else "FIRST_20_RUNS",
        "groupBy": groups and _averages(groups),
        "groupsExpanded": _folded(groups) if groups else {},
        "useGroupedValuesInCharts": True,
        "compareRunSections": sections + [_section(name, 3, 300, shown=False) for name in _UNUSED],
        "compareRunCharts": shown + unwanted,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _averages(groups: _Groups) -> dict[str, Any]:
    keys = [{"mode": groups.mode, "groupByData": groups.key}]
    return {"aggregateFunction": "average", "groupByKeys": keys}


def _folded(groups: _Groups) -> dict[str, bool]:
    """Folded, the list of groups is the charts' legend."""
    return {f"{groups.mode}.{groups.key}.{value}": False for value in groups.values}


def _section(name: str, columns: int, height: int, shown: bool = True) -> dict[str, Any]:
    return {
        "uuid": name,
        "name": name,
        "display": shown,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
        "cardHeight": height,
    }


def _charts(keys: Sequence[str], step: int) -> dict[str, list[dict[str, Any]]]:
    """By section."""
    return {
        _TRAINING: [
            _line(_TRAINING, f"collapse/{n}") for n in ("coverage", "recall", "kl_corrected")
        ],
        _END: [
            _bar(_END, "final/coverage"),
            _bar(_END, "final/recall"),
            _scatter(_END, "final/recall", "final/coverage"),
        ],
        _SETTINGS: [_parallel(_SETTINGS, keys, [f"final/{name}" for name in RANKED])],
        _SAMPLES: [_images(_SAMPLES, "samples", step)],
        _LOSSES: [_line(_LOSSES, "D/loss"), _line(_LOSSES, "G/loss")],
        _DIFFERENCES: [_difference(_DIFFERENCES)],
    }


def _chart(section: str, kind: str, about: str, **content: Any) -> dict[str, Any]:
    return {
        "uuid": f"{kind} {about}",
        "type": kind,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        **content,
    }


def _line(section: str, metric: str) -> dict[str, Any]:
    return _chart(
        section,
        "LINE",
        metric,
        metricKey=metric,
        lineSmoothness=0,
        scaleType="linear",
        xAxisKey="step",
        xAxisScaleType="linear",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        ignoreOutliers=False,
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
        range={},
    )


def _bar(section: str, metric: str) -> dict[str, Any]:
    return _chart(section, "BAR", metric, metricKey=metric)


def _scatter(section: str, x: str, y: str) -> dict[str, Any]:
    axes = {name: {"key": key, "type": "METRIC"} for name, key in (("xaxis", x), ("yaxis", y))}
    return _chart(section, "SCATTER", f"{x} {y}", **axes)


def _parallel(section: str, params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Of single runs: MLflow draws none of groups, as an average of words is none."""
    chosen = {"selectedParams": list(params), "selectedMetrics": list(metrics)}
    return _chart(section, "PARALLEL", "settings", **chosen, showAllRuns=True)


def _images(section: str, name: str, step: int) -> dict[str, Any]:
    """Of single runs, and of the first ten that are shown."""
    return _chart(section, "IMAGE", name, imageKeys=[name], step=step, showRunParams=False)


def _difference(section: str) -> dict[str, Any]:
    return _chart(
        section,
        "DIFFERENCE",
        "runs",
        compareGroups=["Model metrics", "Parameters"],
        chartName="Runs side by side",
        showChangeFromBaseline=True,
        showDifferencesOnly=True,
        baselineColumnUuid="",
    )
