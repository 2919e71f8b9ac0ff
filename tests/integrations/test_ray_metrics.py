"""The Grafana dashboard and the gauges that it shows."""

import json
import re
from pathlib import Path

import ganray.integrations
from ganray.evaluation.suite import METRICS
from ganray.integrations.ray_metrics import gauge_name
from ganray.training import journal

DASHBOARD = Path(ganray.integrations.__file__).with_name("grafana.json")


def test_the_dashboard_shows_gauges_that_exist(trained_run):
    events = [event for event, _ in journal.read(trained_run.config.run_folder())]
    names = {name for event in events for name in event.get("values", {})}
    names |= {f"collapse/{metric.name}" for metric in METRICS}
    names |= {"speed/D_compute_ms", "system/gpu_utilization_percentage"}  # ranks and GPUs
    exported = {f"ray_{gauge_name(name)}" for name in names}
    dashboard = json.loads(DASHBOARD.read_text())
    shown = set(re.findall(r"ray_ganray_\w+", json.dumps(dashboard)))
    assert shown <= exported
    assert {"ray_ganray_speed_images_per_s", "ray_ganray_loss_d"} <= shown


def test_panels_of_ranks_name_the_rank_and_its_host():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            by_rank = "$rank" in target["expr"] or "topk" in target["expr"]
            assert by_rank == ("rank {{rank}} on {{host}}" in target["legendFormat"])
