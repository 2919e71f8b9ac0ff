"""Metrics of workers that train as gauges, which the Ray of each node exports to Prometheus."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from ray.util.metrics import Gauge

from ganray.distributed import rank


class Gauges:
    """Gauges of one rank, which end with its process.

    Prometheus has `loss/D` as `ray_ganray_loss_d`, with the labels run, rank and host.
    """

    def __init__(self, run: str) -> None:
        self._tags = {"run": run, "rank": str(rank()), "host": socket.gethostname()}
        self._gauges: dict[str, Gauge] = {}

    def set(self, metrics: Mapping[str, float]) -> None:
        """Set gauges by the names of the metrics. Ray sends them every few seconds."""
        for name, value in metrics.items():
            if name not in self._gauges:
                keys = tuple(self._tags)
                self._gauges[name] = Gauge(gauge_name(name), description=name, tag_keys=keys)
            self._gauges[name].set(value, self._tags)


def gauge_name(metric: str) -> str:
    """Return the name of a metric's gauge; Ray puts "ray_" before it and exports small letters."""
    return "ganray_" + re.sub(r"\W", "_", metric).lower()
