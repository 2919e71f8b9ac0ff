"""The table and the bars under it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.benchmarks.images import BATCH, SIZES, shape_of
from tests.benchmarks.measure import Reading
from tests.benchmarks.peers.ours import ring_bytes
from tests.benchmarks.variants import VARIANTS, Variant

COLUMNS = ("images/s", "spread", "per core", "of RAM", "us/image", "first ms", "anon MiB")
RULE = f"{'-' * 20}{' ---------' * len(COLUMNS)}  ----"
SLACK_MIB = 4
"""Beside the ring: the order of an epoch, and what the allocator rounds up."""


@dataclass(frozen=True)
class Row:
    """A variant at one size: the best of its rounds, because noise only makes slower."""

    variant: Variant
    size: str
    readings: tuple[Reading, ...] = ()
    skipped: str = ""

    def best(self, name: str) -> float:
        """Return the best reading of ``rate``, ``per_core``, ``first_ms`` or ``anonymous``."""
        values = [getattr(reading, name) for reading in self.readings]
        return max(values) if name in ("rate", "per_core") else min(values)

    @property
    def spread(self) -> float:
        """How far the slowest round is below the fastest."""
        return 1 - min(reading.rate for reading in self.readings) / self.best("rate")


Annotations = dict[tuple[str, str], Row]
"""By size and name of the variant."""


def table(rows: Annotations) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"{'':20}{''.join(f' {column:>9}' for column in COLUMNS)}  note"
    for size in SIZES:
        some = [row for row in rows.values() if row.size == size]
        if some:
            yield RULE
            yield size
            yield RULE
        limit = rows.get((size, "RAM gather"))
        yield from (_line(row, limit) for row in some)
    yield RULE


def _line(row: Row, limit: Row | None) -> str:
    name = f"{row.variant.name:20}"
    if row.skipped:
        return f"{name} skipped: {row.skipped}"
    rate, per_core = row.best("rate"), row.best("per_core")
    share = per_core / limit.best("per_core") if limit and limit.readings else math.nan
    cells = [
        f"{rate:,.0f}",
        f"{row.spread:.0%}" if len(row.readings) > 1 else "-",
        f"{per_core:,.0f}",
        "-" if math.isnan(share) else f"{share:.{3 if share >= 0.01 else 5}f}",
        f"{1e6 / per_core:,.1f}",
        f"{row.best('first_ms'):,.0f}",
        f"{row.best('anonymous'):,.1f}",
    ]
    return f"{name}{''.join(f' {cell:>9}' for cell in cells)}  {row.variant.note}".rstrip()


@dataclass(frozen=True)
class Bar:
    """What the project asks of one ratio."""

    text: str
    above: str
    """Variant whose figure is divided ..."""
    below: Callable[[Annotations, str], str | None]
    """... by the one of this variant: its name, found at one size."""
    least: dict[str, float]
    """By size."""
    judged: str = "per_core"
    """``per_core`` (CPU time) or ``rate`` (wall time) decides; the other is shown."""

    def limit(self, rows: Annotations, size: str) -> float:
        """Return the ratio that memory alone would have in our place; NaN where it has none."""
        below = self.below(rows, size) or ""
        names = _LIMITS.get(self.above, ""), _LIMITS.get(below, below)
        pair = [row for name in names if (row := rows.get((size, name))) and row.readings]
        return _ratio(pair, self.judged) if len(pair) == 2 else math.nan


def _named(name: str) -> Callable[[Annotations, str], str | None]:
    return lambda _rows, _size: name


def _fastest(kind: str, threads: int | None, but: str) -> Callable[[Annotations, str], str | None]:
    """Find the fastest peer, without the variants whose name begins with one of ``but``."""

    def find(rows: Annotations, size: str) -> str | None:
        rates = {
            v.name: rows[size, v.name].best("rate")
            for v in VARIANTS
            if v.kind == kind
            and (threads in (v.threads, None))
            and not v.name.startswith(tuple(but.split()))
            and (size, v.name) in rows
            and rows[size, v.name].readings
        }
        return max(rates, key=lambda name: rates[name], default=None)

    return find


def _both(least: float) -> dict[str, float]:
    return dict.fromkeys(SIZES, least)


_IN_LINE, _THREAD, _TWO = "ganray raw in line", "ganray raw thread", "ganray raw 2 threads"
_LIMITS = {_IN_LINE: "RAM gather", _TWO: "RAM gather 2 threads"}
"""What stands for memory alone in place of our rows: no reader of files can be asked for more."""
BARS = [
    Bar("of RAM gather", _IN_LINE, _named("RAM gather"), _both(0.85)),
    Bar("of in line", _THREAD, _named(_IN_LINE), {"64x64": 0.8, "218x178": 0.65}),
    Bar("x FFCV raw", _IN_LINE, _named("FFCV raw"), _both(1.3)),
    Bar("x FFCV raw", _THREAD, _named("FFCV raw"), _both(1.1)),
    Bar("x next raw peer", _IN_LINE, _fastest("raw", None, "ganray FFCV"), _both(7.0)),
    Bar("x JPEG peers", "ganray JPEG", _fastest("jpeg", 1, "ganray"), _both(1.0)),
    Bar("x JPEG peers", "ganray JPEG 2", _fastest("jpeg", 2, "ganray"), _both(1.0)),
    Bar("x one thread", _TWO, _named(_IN_LINE), _both(1.6), "rate"),
]


def bars(rows: Annotations) -> Iterator[str]:
    """Yield the lines that say which bars are met."""
    yield f"{'':52} {'size':>8} {'ratio':>7} {'bar':>7}  {'':9} other basis, memory alone"
    for bar in BARS:
        for size in SIZES:
            below = bar.below(rows, size)
            pair = [rows.get((size, name)) for name in (bar.above, below or "")]
            peer = f", {below}" if below and bar.text.endswith(("peer", "peers")) else ""
            what = f"{f'{bar.above} {bar.text}{peer}':52} {size:>8}"
            if all(row and row.readings for row in pair):
                wall, core = (_ratio(pair, basis) for basis in ("rate", "per_core"))
                ratio, other = (wall, core) if bar.judged == "rate" else (core, wall)
                basis = "per core" if bar.judged == "rate" else "wall"
                least, limit = bar.least[size], bar.limit(rows, size)
                basis += "" if math.isnan(limit) else f", memory {limit:.2f}"
                yield f"{what} {_verdict(ratio, least, ratio >= least)} {other:.2f} {basis}"
            elif any(row and row.size == size for row in rows.values()):
                yield f"{what}  not measured"
    yield from _absolute(rows)


def _absolute(rows: Annotations) -> Iterator[str]:
    """Yield the bars that are a number and not a ratio to another row."""
    for name in (_IN_LINE, _THREAD):
        for size in SIZES:
            row = rows.get((size, name))
            if not row or not row.readings:
                continue
            batch = BATCH * math.prod(shape_of(size))
            ring = (ring_bytes(batch) if name == _THREAD else batch) / 2**20
            for what, found, most in (
                ("first batch, ms", row.best("first_ms"), 50.0),
                ("anonymous MiB: ring + 4", row.best("anonymous"), ring + SLACK_MIB),
            ):
                yield f"{f'{name} {what}':52} {size:>8} {_verdict(found, most, found <= most)}"


def _ratio(pair: list[Row], name: str) -> float:
    return pair[0].best(name) / pair[1].best(name)


def _verdict(found: float, wanted: float, met: bool) -> str:
    return f"{found:7.2f} {wanted:7.2f}  {'met' if met else 'MISSED':9}"
