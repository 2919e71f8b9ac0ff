"""MLflow: saved views of a sweep, whose charts are ready when the page is opened.

MLflow's own chart page shows the parent run only, as its children are collapsed. A saved view is an
experiment tag that the page reads: which runs, how they are grouped, which charts. The format is
undocumented and was read from MLflow 3.17; tests/integrations/test_mlflow_view.py fails where the
installed MLflow no longer has the names that are used here.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from ganray.integrations.mlflow_runs import NOTE_TAG, Run
from ganray.integrations.mlflow_sweep import (
    LOSS_CURVES,
    MEAN_TAG,
    PAGE_RUNS,
    SETTING_TAG,
    SWEEP_TAG,
    VARIETY_CURVES,
    axis_key,
    setting_name,
)
from ganray.sweeps.axes import SEED, Axis
from ganray.sweeps.design import SweepPlan
from ganray.sweeps.results import RANKED

_VIEW_TAG = "mlflow.sharedViewState."
_MAX_GROUPS = 24
"""Maximum number of lines in a chart."""
_MAX_LEGEND = 3
"""Maximum number of lines whose names fit below a chart; for more, the list of runs is the legend.
Hidden, it leaves room for the titles of charts where MLflow's assistant is open beside them."""
_FINAL = ("coverage", *(name for name in RANKED if name != "coverage"))
"""Metrics at the end of a run, in the order of columns and of parallel coordinates."""
_OTHER_METRICS = ("collapse", "discriminator", "loss", "speed", "system", "final")
"""Prefixes of metrics without a chart here. MLflow adds a section for each; they stay closed."""
_DESCRIPTION = """\
Each run trains one GAN; the runs are compared by mode collapse.

**Higher is better:** `collapse/recall` and `collapse/coverage`, the share of real images that \
have a sample close by, and `collapse/vendi_share`, the variety as a share of the real images'.
**Lower is better:** `collapse/kl_corrected`, how unevenly the classes are generated.
The x-axis counts images seen by D. `final/...` are the values at the end of a run; a run that \
diverged has the worst ones, a run that crashed or was stopped early has none.

A *sweep* is a parent run with a child run for each trial and, for several seeds, one for the \
means of each setting. **Views** (above the charts) lists its comparisons. A page shows the runs \
that it has loaded: press **Load more** below the runs. The parent's artifacts contain the report, \
with intervals over the seeds.
"""


def save_views(
    run: Run, plan: SweepPlan, base_url: str, *, has_means: bool = False
) -> dict[str, str]:
    """Save views of a sweep and return their URLs by title, the one to open first leading.

    There are views of averages over each axis's levels and, for several axes, over settings, one of
    all runs, and one of a run of each setting, for its samples. Saving again replaces them.

    Args:
        run: The parent run. The trials' folders are beside its folder.
        plan: The sweep.
        base_url: The MLflow server's URL.
        has_means: Whether averages are of the runs of `SweepRuns.log_means`, as the page draws
            hundreds of runs slowly.

    Raises:
        MlflowException, OSError: The store cannot be reached.
    """
    client = run.client()
    if NOTE_TAG not in client.get_experiment(run.experiment_id).tags:  # keep a user's description
        client.set_experiment_tag(run.experiment_id, NOTE_TAG, _DESCRIPTION)
    views = _views(plan, _latest_samples(run, plan), has_means)
    for title, state in reversed(views.items()):  # MLflow lists the newest first
        now = int(time.time() * 1000)
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        view = {"name": title, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
        client.set_experiment_tag(run.experiment_id, _VIEW_TAG + _key(title), json.dumps(view))
    return {title: view_url(base_url, run.experiment_id, title) for title in views}


def view_url(base_url: str, experiment_id: str, title: str) -> str:
    """Return the URL of a saved view on an MLflow server."""
    query = {
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
        "viewStateShareKey": _key(title),
    }
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def _views(plan: SweepPlan, step: int, means: bool) -> dict[str, dict[str, Any]]:
    """Return the states of all views by title."""
    varied = [axis for axis in plan.axes if len(axis.levels) > 1]
    averages = ("training", "kl", "end", "losses")
    views = {
        f"by {axis.title}": _state(plan, step, averages, groups=_axis_groups(axis), means=means)
        for axis in varied
    }
    if len(varied) > 1 and len(plan.settings) <= _MAX_GROUPS:
        groups = ("tag", SETTING_TAG, [setting_name(setting) for setting in plan.settings])
        views["by setting"] = _state(plan, step, averages, groups=groups, means=means)
    all_sections = ("training", "kl", "end", "settings", "samples", "losses", "differences")
    views["every run"] = _state(plan, step, all_sections)
    seed, sections = _first_seed(plan), ("samples", "training", "kl", "end", "differences")
    views[f"samples of seed {seed}"] = _state(plan, step, sections, rng_seed=seed)
    return {f"{plan.name} {title}": state for title, state in views.items()}


def _first_seed(plan: SweepPlan) -> int:
    return min(trial.rng_seed for trial in plan.trials)


def _key(title: str) -> str:
    """Return the key of a view in its URL."""
    return title.replace(" ", "-")


Groups = tuple[str, str, list[str]]
"""Runs with equal values of a "param" or "tag": that word, its name, its values."""


def _axis_groups(axis: Axis) -> Groups:
    key = axis_key(axis)
    is_field = key == axis.name
    values = [str(v.overrides[key]) if is_field else v.label for v in axis.levels]
    return "param", key, values


def _latest_samples(run: Run, plan: SweepPlan) -> int:
    """Return the step of the newest samples that most runs have; the page shows one step."""
    folders = [run.folder.parent / trial.name / "samples" for trial in plan.trials]
    newest = [max(files) for folder in folders if (files := list(folder.glob("*.png")))]
    steps = Counter(int(file.stem) for file in newest)
    return max(steps, key=lambda step: (steps[step], step), default=0)


def _state(
    plan: SweepPlan,
    step: int,
    section_names: Sequence[str],
    *,
    groups: Groups | None = None,
    rng_seed: int | None = None,
    means: bool = False,
) -> dict[str, Any]:
    """Return a view: of averages over groups, or of single runs, of one seed or all."""
    keys = [axis_key(axis) for axis in plan.axes]
    runs_filter = f"tags.`{MEAN_TAG if means else SWEEP_TAG}` = '{plan.name}'"
    if rng_seed is not None:
        runs_filter += f" AND params.`{SEED}` = '{rng_seed}'"
    sections = _sections(keys, step)
    runs = sum(rng_seed in (None, trial.rng_seed) for trial in plan.trials)
    runs = len(plan.settings) if means else runs
    is_partial = runs > PAGE_RUNS
    titles = {name: sections[name][0] for name in section_names}
    if is_partial:
        titles[section_names[0]] = f"{PAGE_RUNS} of {runs} runs loaded"
    charts = [chart for name in section_names for chart in sections[name][3]]
    if "samples" not in section_names:  # MLflow would add a chart of images
        charts += [chart | {"deleted": True} for chart in sections["samples"][3]]
    mode, group_key, values = groups or ("", "", [])
    return {
        "searchFilter": runs_filter,
        # The best runs come first, unless that leaves others out: then one seed after another, each
        # of which has every level. By start_time, MLflow would fetch the parent too.
        "orderByKey": f"params.`{SEED}`" if is_partial else "metrics.`final/coverage`",
        "orderByAsc": is_partial,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"params.`{key}`" for key in keys),
            *(f"metrics.`final/{name}`" for name in (*_FINAL, "modes_held", "diverged")),
        ],
        "runsHiddenMode": "SHOW_ALL" if groups else "FIRST_20_RUNS",
        "groupBy": groups
        and {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": mode, "groupByData": group_key}],
        },
        # Collapsed, the list of groups is the legend of the charts.
        "groupsExpanded": {f"{mode}.{group_key}.{value}": False for value in values},
        "runListHidden": 0 < len(values) <= _MAX_LEGEND,
        "useGroupedValuesInCharts": True,
        "compareRunSections": [
            *(_section(name, title, *sections[name][1:3]) for name, title in titles.items()),
            *(_section(prefix, prefix, 3, 300, is_open=False) for prefix in _OTHER_METRICS),
        ],
        "compareRunCharts": charts,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _section(
    name: str, title: str, columns: int, height: int, is_open: bool = True
) -> dict[str, Any]:
    return {
        "uuid": name,
        "name": title,
        "display": is_open,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
        "cardHeight": height,
    }


def _sections(keys: list[str], step: int) -> dict[str, tuple[str, int, int, list[dict[str, Any]]]]:
    """Return sections by name: title, charts per row, their height in pixels, charts.

    Of three charts per row, titles would be cut on a laptop, as MLflow's assistant opens there.
    """

    def chart(section: str, kind: str, **content: Any) -> dict[str, Any]:
        uuid = f"{section} {kind} {content.get('metricKey', '')}"
        base = {"uuid": uuid, "type": kind, "metricSectionId": section, "deleted": False}
        return base | {"isGenerated": False, "runsCountToCompare": PAGE_RUNS} | content

    def lines(section: str, *metrics: str) -> list[dict[str, Any]]:
        style = {
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "selectedXAxisMetricKey": "",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "scaleType": "linear",
            "lineSmoothness": 0,
            "ignoreOutliers": False,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
            "range": {},
        }
        return [chart(section, "LINE", metricKey=metric, **style) for metric in metrics]

    *variety, kl = VARIETY_CURVES
    coverage, recall = ({"key": f"final/{n}", "type": "METRIC"} for n in ("coverage", "recall"))
    end = [chart("end", "BAR", metricKey=axis["key"]) for axis in (coverage, recall)]
    metrics = [f"final/{name}" for name in _FINAL]
    parallel = {"selectedParams": keys, "selectedMetrics": metrics, "showAllRuns": True}
    settings = [chart("settings", "PARALLEL", **parallel)]
    settings.append(chart("settings", "SCATTER", xaxis=recall, yaxis=coverage))
    samples = {"imageKeys": ["samples"], "step": step, "showRunParams": False}
    differences = {
        "compareGroups": ["Model metrics", "Parameters"],
        "chartName": "Runs",
        "showChangeFromBaseline": True,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }
    return {
        "training": ("Variety while training", 2, 360, lines("training", *variety)),
        "kl": ("KL, lower is better", 1, 360, lines("kl", kl)),
        "end": ("Variety at the end", 2, 360, end),
        "settings": ("From settings to variety", 1, 420, settings),
        "samples": ("Samples", 1, 640, [chart("samples", "IMAGE", **samples)]),
        "losses": ("Losses", 2, 320, lines("losses", *LOSS_CURVES)),
        "differences": ("Differences", 1, 480, [chart("differences", "DIFFERENCE", **differences)]),
    }
