"""What every setting's samples look like, in one picture. Not chosen: always the lowest seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ganray.sweeps.results import Results
from ganray.sweeps.tables import Cell, Panel, Table, digits, short, tabulate, title_of
from ganray.training.state import GRID_COLUMNS, GRID_ROWS

_PIXELS = 1_500_000
"""Of all tiles together, about: a page with hundreds of settings must still open."""
_SIDES = 24, 64
"""Pixels of a sample: whatever the number of settings, no fewer; at most."""
_WIDTH = 1400
"""Pixels that panels beside each other take, at most."""
_GAP, _MARGIN, _FONT, _SMALL, _LINE = 6, 16, 13, 11, 20
_INK, _PALE, _BLANK = (30, 30, 30), (110, 110, 110), (232, 232, 232)


def contact_sheet(
    results: Results, runs: Path, path: Path, columns: int = 4, metric: str = "coverage"
) -> None:
    """Draw a tile of samples for each cell: first axis down, second across, a panel for each rest.

    Args:
        results: of the study.
        runs: the folder that holds the runs' folders.
        path: the PNG to write.
        columns: a tile has as many columns of samples, and as many rows (8 at most).
        metric: whose mean stands below each tile.
    """
    table = tabulate(results, metric)
    columns = min(columns, GRID_ROWS)
    side = int(np.clip(math.sqrt(_PIXELS / len(table.cells)) / columns, *_SIDES))
    tiles = [
        [[tile(cell, runs, columns, side) for cell in row] for row in panel.cells]
        for panel in table.panels
    ]
    shapes = [t.shape for panel in tiles for row in panel for t in row if t is not None]
    size = max(shapes, default=(columns * side, columns * side, 3))[:2]
    wide = max(size[1], 84) + _GAP  # as the captions are
    across = _across(len(table.panels), _names_width(table), wide * len(table.columns.levels))
    panels = [
        _panel(table, panel, images, size, named=i % across == 0)
        for i, (panel, images) in enumerate(zip(table.panels, tiles, strict=True))
    ]
    words = f"below each: {title_of(metric)}, mean over runs and half of its 95 % t-interval"
    Image.fromarray(_side_by_side(panels, across, words)).save(path, optimize=True)


def _across(panels: int, names: int, wide: int) -> int:
    """How many panels stand beside each other, in rows that are about equally full."""
    most = max(1, (_WIDTH - names - _MARGIN) // (wide + 2 * _MARGIN))
    return math.ceil(panels / math.ceil(panels / most))


def _names_width(table: Table) -> int:
    font = ImageFont.load_default(_FONT)
    names = (*table.rows.labels, table.rows.title)
    return math.ceil(max(font.getlength(name) for name in names)) + 10


def tile(cell: Cell, runs: Path, columns: int, side: int) -> np.ndarray | None:
    """Some samples of the cell's first run that finished: uint8 (h, w, 3), or None.

    Args:
        cell: whose samples.
        runs: the folder that holds the runs' folders.
        columns: columns and rows of samples.
        side: pixels of a sample, at most.
    """
    for trial, outcome in zip(cell.trials, cell.outcomes, strict=True):
        grids = list((runs / trial.name / "samples").glob("*.png"))
        if outcome.status == "finished" and grids:
            return crop(np.asarray(Image.open(max(grids)).convert("RGB")), columns, side)
    return None


def crop(grid: np.ndarray, columns: int, side: int) -> np.ndarray:
    """The upper left of a sample grid, uint8 (H, W, 3), its samples no larger than `side`."""
    height = grid.shape[0] // GRID_ROWS
    # Samples are squares, except where the grid then holds no whole number of them.
    width = height if grid.shape[1] % height == 0 else grid.shape[1] // GRID_COLUMNS
    part = Image.fromarray(grid[: columns * height, : columns * width])
    # By a whole factor: samples were enlarged by whole pixels, and stay as sharp as they were.
    return np.asarray(part.reduce(math.ceil(max(height, width) / side)))


def _panel(
    table: Table,
    panel: Panel,
    tiles: list[list[np.ndarray | None]],
    size: tuple[int, int],
    named: bool,
) -> np.ndarray:
    """The tiles under their title and the names of columns: uint8 (h, w, 3).

    Args:
        table: which the panel is of.
        panel: what is drawn.
        tiles: as the panel's cells.
        size: (height, width) of a tile.
        named: whether the names of rows stand at the left.
    """
    font, (tall, wide) = ImageFont.load_default(_FONT), size
    step = max(wide, 84) + _GAP
    left = _names_width(table) if named else 0
    top = _LINE * (bool(panel.title) + bool(table.columns.title) + 1) + 4
    width, height = left + len(tiles[0]) * step - _GAP, top + len(tiles) * (tall + _LINE + _GAP)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    pen.text(((left + width) / 2, 0), panel.title, _INK, font, "ma")
    pen.text(((left + width) / 2, top - 4 - 2 * _LINE), table.columns.title, _PALE, font, "ma")
    for x, label in enumerate(table.columns.labels):
        pen.text((left + (x + 0.5) * step - 3, top - 4 - _LINE), label, _INK, font, "ma")
    if named:
        pen.text((left - 10, top - 4 - _LINE), table.rows.title, _PALE, font, "ra")
        for y, label in enumerate(table.rows.labels):
            at = top + y * (tall + _LINE + _GAP) + tall / 2
            pen.text((left - 10, at), label, _INK, font, "rm")
    for y, (row, images) in enumerate(zip(panel.cells, tiles, strict=True)):
        for x, (cell, image) in enumerate(zip(row, images, strict=True)):
            corner = (left + x * step, top + y * (tall + _LINE + _GAP))
            _put(picture, pen, cell, image, (*corner, step - _GAP, tall))
    return np.asarray(picture)


def _put(
    picture: Image.Image,
    pen: Any,
    cell: Cell,
    image: np.ndarray | None,
    place: tuple[int, int, int, int],
) -> None:
    """A tile in the middle of its place (x, y, width, height), or a word on grey why not."""
    x, y, wide, tall = place
    small = ImageFont.load_default(_SMALL)
    pen.text((x + wide / 2, y + tall + 4), _caption(cell), _PALE, small, "ma")
    if image is not None:
        at = (x + (wide - image.shape[1]) // 2, y + (tall - image.shape[0]) // 2)
        picture.paste(Image.fromarray(image), at)
        return
    pen.rectangle((x, y, x + wide - 1, y + tall - 1), _BLANK)
    word = _why_missing(cell)
    pen.text((x + wide / 2, y + tall / 2), word, _PALE, ImageFont.load_default(_FONT), "mm")


def _why_missing(cell: Cell) -> str:
    """Why there are no samples, in a word."""
    if any(outcome.status == "finished" for outcome in cell.outcomes):
        return "no samples"
    return cell.state or "not planned"


def _caption(cell: Cell) -> str:
    if cell.mean is None:
        return ""
    return " ".join(filter(None, short(cell.mean, digits([cell.mean.value]))))


def _side_by_side(panels: list[np.ndarray], across: int, words: str) -> np.ndarray:
    """Panels on white, so many in a row, over a line of words: uint8 (h, w, 3)."""
    font, height = ImageFont.load_default(_SMALL), panels[0].shape[0]
    rights = np.cumsum([panel.shape[1] + 2 * _MARGIN for panel in panels[:across]]) - _MARGIN
    rows = math.ceil(len(panels) / across)
    wide = max(int(rights[-1]), math.ceil(font.getlength(words)) + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (wide, rows * (height + _MARGIN) + 2 * _MARGIN + _LINE), "white")
    for i, panel in enumerate(panels):
        row, column = divmod(i, across)
        at = (int(rights[column]) - panel.shape[1], _MARGIN + row * (height + _MARGIN))
        sheet.paste(Image.fromarray(panel), at)
    ImageDraw.Draw(sheet).text((_MARGIN, sheet.height - _MARGIN), words, _PALE, font, "ls")
    return np.asarray(sheet)
