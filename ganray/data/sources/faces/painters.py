"""Rendering of procedural faces from their traits.

`paint` renders `Traits` to uint8 images in chunks. A `_Canvas` holds the images of a chunk. Each
painter opens a `_Window` on the part of them that it needs and paints its feature over the pixels,
in the order of `_PAINTERS`.

Shapes are signed distances `d` (negative inside), anti-aliased by `clip(0.5 - d / softness)`, in
face coordinates: `u` to the right and `v` down, in pixels, zero between the eyes. The eyes are at
u = -19 and 19 and the mouth is near v = 42. Arrays are (n, height, width), with colors (n, 3,
height, width).

Only + - * /, sqrt, rint, min and max are used, which IEEE 754 rounds exactly, and no reductions
over faces, so that a face has the same bytes in any batch and on any machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ganray.data.sources.faces.traits import (
    BEANIE,
    BEARD,
    BLACK,
    BRIM,
    CAP,
    GOATEE,
    MEDIUM,
    SHORT,
    STUBBLE,
    SUIT,
    TEE,
    Traits,
    mix,
    rgb,
)

HEIGHT, WIDTH = 218, 178
"""Size of CelebA's aligned images."""

Number = float | np.ndarray

_CHUNK = 12  # faces painted at once: enough to hide numpy's overhead, few enough for the cache


# Primitives: signed distances, coverage, waves.


def _either(flag: np.ndarray, yes: Number, no: Number = 0.0) -> np.ndarray:
    """Return np.where in float32, so that a flag does not promote pixels to float64."""
    return np.where(flag, np.float32(yes), np.float32(no))


def _plus(x: np.ndarray) -> np.ndarray:
    """Return np.maximum(x, 0) in a third of the time."""
    return np.clip(x, 0, 1e6)


def _cover(d: np.ndarray, softness: Number = 1.2) -> np.ndarray:
    """Return the coverage in [0, 1] of signed distances (negative inside)."""
    d = d * (-1 / softness)
    d += 0.5
    return np.clip(d, 0, 1, out=d)


def _ellipse(x, y, rx, ry) -> np.ndarray:
    """Return approximate signed distances to an ellipse around zero."""
    x, y = x / rx, y / ry
    return (np.sqrt(x * x + y * y) - 1) * np.minimum(rx, ry, dtype=np.float32)


def _blob(x, y, rx, ry) -> np.ndarray:
    """Return a smooth bump: 1 at zero, 0 on the ellipse and outside."""
    x, y = x / rx, y / ry
    bump = _plus(1 - x * x - y * y)
    return bump * bump


def _wave(x) -> np.ndarray:
    """Return a sine-like wave of parabolas, with period 1 and amplitude 1."""
    x = x - np.rint(x)
    slope = np.abs(x)
    slope *= -16
    slope += 8
    slope *= x
    return slope


class _Window:
    """Rectangle of pixels of some faces: traits `t`, face coordinates `u` and `v` (m, h, w)."""

    def __init__(self, t: Traits, pixels: np.ndarray, u, v, scratch: np.ndarray) -> None:
        self.t, self.rgb, self.u, self.v = t, pixels, u, v
        self.column = u[:, :1]  # (m, 1, w): u of the first row, for shapes that need not rotate
        self._scratch = scratch[: pixels.size].reshape(pixels.shape)

    def paint(self, coverage: np.ndarray, color, strength=None) -> None:
        """Blend a color, (m, 3, 1, 1) or per pixel, over the pixels by its coverage."""
        if strength is not None:
            coverage = coverage * np.asarray(strength, np.float32)
        change = np.subtract(color, self.rgb, out=self._scratch)
        change *= coverage[:, None]
        self.rgb += change

    def model(self, coverage: np.ndarray, dark, light, tone: np.ndarray) -> None:
        """Blend a shaded color over the pixels: dark at tone 0, light at tone 1."""
        change = np.multiply(tone[:, None], light - dark, out=self._scratch)
        change += dark
        change -= self.rgb
        change *= coverage[:, None]
        self.rgb += change


class _Canvas:
    """Unfinished images `rgb`, float32 (n, 3, 218, 178) in [0, 255], of faces with traits `t`.

    The memory is reused for all chunks: allocating pages takes longer than painting them.
    """

    def __init__(self, max_faces: int) -> None:
        self._memory = np.empty((max_faces, 5, HEIGHT + 2, WIDTH + 2), np.float32)  # rgb, u, v
        self._scratch = np.empty(max_faces * 3 * HEIGHT * WIDTH, np.float32)

    def start(self, t: Traits) -> None:
        """Start a chunk: paint the background, compute the coordinates."""
        self.t, memory = t, self._memory[: t.male.size]
        _wall(t, memory[:, :3])
        self.rgb, self._u, self._v = memory[:, :3, :HEIGHT, :WIDTH], memory[:, 3], memory[:, 4]
        x = np.arange(memory.shape[3], dtype=np.float32) - t.eye_x
        y = np.arange(memory.shape[2], dtype=np.float32)[:, None] - t.eye_y
        cos, sin = t.cos / t.zoom, t.sin / t.zoom
        np.add(cos * x, sin * y, out=self._u)
        np.subtract(cos * y, sin * x, out=self._v)
        self.hair: list[
            tuple[np.ndarray, np.ndarray]
        ] = []  # of `_hair_behind`, for `_hair_in_front`

    @contextmanager
    def window(self, top: int, bottom: int, left: int, right: int, only=None) -> Iterator[_Window]:
        """Open a rectangle of the faces that `only`, bool (n, 1, 1), selects."""
        rows = slice(None) if only is None or only.all() else np.flatnonzero(only)
        box = (rows, ..., slice(top, bottom), slice(left, right))
        pixels = self.rgb[box]
        if right - left < 100:  # numpy is slow on short rows, so narrow boxes are copied
            pixels = pixels.copy()
        yield _Window(self.t[rows], pixels, self._u[box], self._v[box], self._scratch)
        if pixels.base is not self._memory:  # then the pixels are a copy
            self.rgb[box] = pixels


# Painters, from the background to the glasses.


def _wall(t: Traits, out: np.ndarray) -> None:
    """Paint a blurred background into (n, 3, 220, 180), at a quarter of the size, then enlarged."""
    x = np.arange(0, WIDTH + 6, 4, dtype=np.float32)
    y = np.arange(0, HEIGHT + 6, 4, dtype=np.float32)[:, None]
    d = t.wall_edge_u * (x - WIDTH / 2) + t.wall_edge_v * (y - HEIGHT / 2) - t.wall_edge
    glow = np.ones_like(d)
    for spot in range(t.spots.shape[1]):
        at_x, at_y, radius, strength = (t.spots[:, spot, k] for k in range(4))
        light = np.minimum(_blob(x - at_x, y - at_y, radius, radius) * 2, 1) * strength
        glow *= 1 + light
    small = t.wall + _cover(d, t.wall_sharp)[:, None] * (t.wall_far - t.wall)
    small *= glow[:, None]
    _stretch(small, out)


def _stretch(small: np.ndarray, out: np.ndarray) -> None:
    """Enlarge (n, 3, h, w) linearly into (n, 3, 4h - 4, 4w - 4)."""
    wide = np.empty((*small.shape[:3], out.shape[3]), np.float32)
    step = np.diff(small) / 4
    for k in range(4):
        wide[..., k::4] = small[..., :-1] + k * step
    step = np.diff(wide, axis=2) / 4
    out[:, :, ::4] = wide[:, :, :-1]
    for k in range(1, 4):
        np.add(out[:, :, k - 1 :: 4], step, out=out[:, :, k::4])


def _hair_shape(t: Traits, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and tone of the hair, a dome above a column."""
    side, column = u - t.head, u[:, :1]
    height = _plus(-6 - v)
    height /= 62 + t.puff_top
    width = t.face_w + t.puff
    x = _plus(v + 18)
    x *= t.flare / 100 * width
    x += width
    np.divide(side, x, out=x)
    radius = x * x
    radius += height * height
    np.sqrt(radius, out=radius)
    curls = t.curl * _wave(v / t.curl_size + (t.phase + 0.008 * column))
    ends = v + (5 * (column / width) ** 2 - t.hair_end - 1.5 * _wave(column / 9))
    d = np.maximum((radius - 1) * width, ends)
    d += t.curl * _wave(column / t.curl_size)
    d += curls
    strand = side / (v + 130)  # from one point above the head
    strand *= t.strands
    strand += t.phase
    strand += 0.06 * curls
    tone = 0.16 * _wave(strand)
    strand *= 2.7
    strand -= np.rint(strand)
    tone += 0.5 * np.abs(strand)
    radius -= 0.78
    tone += _plus(0.5 - np.abs(radius) / 0.3) * height  # highlight
    x *= 0.28 * t.light_u
    tone += x
    tone += 0.28
    return _cover(d, 2), tone


def _twice(rows: np.ndarray) -> np.ndarray:
    """Interpolate every other row: (m, h, w) -> (m, 2h, w).

    Hair varies little along v, so half of its rows are computed, in half the time.
    """
    full = np.repeat(rows, 2, axis=1)
    full[:, 1:-1:2] += rows[:, 1:]
    full[:, 1:-1:2] *= 0.5
    return full


def _hairs(t: Traits) -> list[tuple[tuple[int, int, int, int], np.ndarray]]:
    """Return the bounding box and the faces of short and of longer hair."""
    tall = t.length > SHORT
    return [((14, 126, 16, 162), t.haired & ~tall), ((14, HEIGHT, 6, 172), t.haired & tall)]


def _hair_behind(canvas: _Canvas) -> None:
    for box, faces in _hairs(canvas.t):
        with canvas.window(*box, only=faces) as w:
            coverage, tone = map(_twice, _hair_shape(w.t, w.u[:, ::2], w.v[:, ::2]))
            canvas.hair.append((coverage, tone))
            w.paint(coverage, w.t.hair_dark * 0.8)


def _hair_in_front(canvas: _Canvas) -> None:
    """Paint the hair except an opening for the face, and its shadow on the forehead."""
    for (box, faces), (coverage, tone) in zip(_hairs(canvas.t), canvas.hair, strict=True):
        with canvas.window(*box, only=faces) as w:
            t, side, v = w.t, w.u[:, ::2] - w.t.head, w.v[:, ::2]
            width = t.face_w - t.temple
            a = np.abs(side) / (width + width * t.part_open * _plus(v) / 100)
            b = _plus(-v - t.sweep * side) / t.hairline
            opening = np.sqrt(a * a + b * b)
            opening += t.peak * (a + b - opening) - 1
            opening *= width
            opening += t.jag * (_wave(w.column / 7.3 + t.phase) + _wave(w.column / 4.1))
            opening = _twice(opening)
            w.paint(np.clip(1 + opening / 8, 0, 1) * coverage, t.skin_dark * 0.8, 0.4)
            w.model(coverage * _cover(-opening, 2), t.hair_dark, t.hair_light, tone)


def _neck(canvas: _Canvas) -> None:
    with canvas.window(160, HEIGHT, 36, 142) as w:
        t = w.t
        d = np.abs(w.u - t.head / 2) - t.neck_w - 0.02 * np.maximum(w.v - 68, 0) ** 2
        tone = np.clip((w.v - t.chin) / 24, 0.1, 0.9) + (0.3 / 25) * t.light_u * w.u
        w.model(_cover(d), t.skin_dark, t.skin, tone)


def _shirt(canvas: _Canvas) -> None:
    """Paint the visible part of shirt and tie of a suit."""
    with canvas.window(176, HEIGHT, 40, 138, only=canvas.t.outfit == SUIT) as w:
        t, a, down = w.t, np.abs(w.u), w.v - w.t.shoulder
        throat = a - (t.neck_w - 2) * (4 - down) / 10
        shirt = np.maximum(np.maximum(a - t.neck_w - 2.5, -6 - down), -throat)
        fold = _cover(np.abs(a - 9 + down / 3) - 0.8, 2)
        w.paint(_cover(shirt), 240 - 40 * fold[:, None])
        knot = np.maximum(a - 6.5 + 0.25 * (down - 2), np.abs(down - 6) - 5)
        blade = np.maximum(a - 4 - 0.22 * (down - 11), 11 - down)
        shade = 0.9 - 0.35 * _cover(np.abs(down - 11) - 0.5, 2)
        w.paint(_cover(np.minimum(knot, blade)), t.tie * shade[:, None], t.necktie)


def _clothes(canvas: _Canvas) -> None:
    with canvas.window(174, HEIGHT, 0, WIDTH) as w:
        t, a, down = w.t, np.abs(w.u), w.v - w.t.shoulder
        slant = np.maximum(a - t.neck_w, 0)
        d = t.slope * slant + 0.0016 * slant * slant - down
        round_neck = _ellipse(a, down + 4, t.neck_w + 3, 15)
        vee = (a - (t.neck_w + 2) * (1 - down / t.vee)) * 0.8
        hole = np.where(t.outfit == TEE, round_neck, vee)
        stripes = _cover(_wave(w.v / 11) * 3) * t.striped
        tone = 0.92 - 0.0024 * a + (0.002 * t.light_u) * w.u
        tone -= 0.2 * _cover(np.abs(hole - 3.5) - 0.5, 1.5)
        cloth = (t.cloth + stripes[:, None] * (t.stripe - t.cloth)) * tone[:, None]
        w.paint(_cover(np.maximum(d, -hole)), cloth)


def _necklace(canvas: _Canvas) -> None:
    """Paint beads, or a chain with a pendant."""
    with canvas.window(174, HEIGHT, 40, 138, only=canvas.t.necklace) as w:
        t = w.t
        ring = _ellipse(w.u, w.v - 76, t.neck_w + 1, 24)
        along = w.u - 5 * np.rint(w.u / 5)
        beads = np.sqrt(ring * ring + along * along) - 2.4
        chain = np.minimum(np.abs(ring) - 0.9, _ellipse(w.u, w.v - 102, 3, 3.6))
        d = np.maximum(np.where(t.beads, beads, chain), 76 - w.v)
        w.paint(_cover(d - 1, 2), t.skin_dark * 0.7, 0.4)
        w.paint(_cover(d), t.metal)


def _ears(canvas: _Canvas) -> None:
    bare = ~canvas.t.haired | (canvas.t.length == SHORT)
    for side, left in ((-1, 26), (1, 120)):
        with canvas.window(92, 144, left, left + 32, only=bare) as w:
            t = w.t
            x = side * (w.u - t.head) - t.face_w - 0.5 + 2 * side * t.yaw
            y = w.v - 6 + 0.3 * x
            w.paint(_cover(_ellipse(x, y, 6.5, 12)), t.skin * 0.93)
            w.paint(_cover(_ellipse(x - 0.5, y, 3.2, 8), 4), t.skin_dark, 0.7)


def _face_shape(w: _Window) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return signed distance, normalized coordinates and squared radius of the face's outline."""
    t = w.t
    below = _plus(w.v)
    jaw = below / t.chin
    y = jaw + (w.v - below) / 66
    jaw *= jaw
    x = (w.u - t.head) / t.face_w
    x *= 1 + t.taper * jaw
    xx, yy = x * x, y * y
    radius = xx + yy
    return (np.sqrt(radius - t.square * xx * yy) - 1) * t.face_w, x, y, radius


def _face(canvas: _Canvas) -> None:
    """Paint the face, lit from the side."""
    with canvas.window(36, 196, 28, 150) as w:
        t = w.t
        d, x, y, radius = _face_shape(w)
        tone = 1.05 - 0.34 * radius
        tone += (0.42 * t.light_u) * x
        tone += (0.20 * t.light_v) * y
        np.clip(tone, 0, 1.15, out=tone)
        w.model(_cover(d), t.skin_dark, t.skin, tone)


def _cheeks(canvas: _Canvas) -> None:
    """Paint blush, cheekbones and the folds beside the mouth."""
    with canvas.window(112, 172, 40, 138) as w:
        t, a, v = w.t, np.abs(w.u - w.t.head / 3), w.v
        rose = _either(t.rosy, 0.8, _either(t.makeup, 0.25, 0.1))
        w.paint(_blob(a - 26, v - 22, 17, 14), t.skin * rgb(1.0, 0.60, 0.62), rose)
        w.paint(
            _blob(a - 30 + 0.5 * (v - 13), v - 13, 13, 8), t.skin * 1.1 + 14, 0.55 * t.cheekbones
        )
        w.paint(_blob(a - 30 + 0.6 * (v - 34), v - 34, 13, 12), t.skin_dark, 0.4 * t.cheekbones)
        down = v - 24
        fold = np.abs(a - t.nose_w - 3 - 0.42 * down + 0.012 * down * down) - 0.8
        fold = np.maximum(fold, np.abs(down - 9) - 10)
        w.paint(_cover(fold, 2.5), t.skin_dark * 0.9, 0.2 * t.smile + 0.5 * t.old)


def _wrinkles(canvas: _Canvas) -> None:
    """Paint wrinkles on the forehead, and a double chin."""
    with canvas.window(66, 102, 50, 128, only=canvas.t.old) as w:
        line = np.abs(_wave((w.v + 2e-3 * w.u * w.u) / 12)) * 3 - 0.9
        w.paint(_cover(line, 2) * _blob(w.u, w.v + 28, 32, 13), w.t.skin_dark * 0.9, 0.7)
    with canvas.window(164, 204, 50, 128, only=canvas.t.double_chin) as w:
        d = np.abs(w.v - w.t.chin - 7 + 0.009 * w.u * w.u) - 1.5
        w.paint(_blob(w.u, w.v - w.t.chin - 2, 20, 5), w.t.skin, 0.6)
        w.paint(_cover(d, 3) * _cover(np.abs(w.u) - 24, 8), w.t.skin_dark * 0.72, 0.9)


def _beard(canvas: _Canvas) -> None:
    kind = canvas.t.facial
    with canvas.window(100, 200, 30, 148, only=(kind == STUBBLE) | (kind == BEARD)) as w:
        t, full = w.t, w.t.facial == BEARD
        cheek = _ellipse(w.u - t.head / 2, w.v - 4, t.face_w - 7, 30)
        d = np.maximum(_face_shape(w)[0] - _either(full, 2.5, 0), np.maximum(-cheek, 6 - w.v))
        w.paint(_cover(d, 5), _beard_color(w), _either(full, 0.96, 0.42))
    with canvas.window(130, 200, 50, 128, only=kind == GOATEE) as w:
        d = _ellipse(w.u - w.t.yaw, w.v - w.t.chin + 10, 15, 17)
        w.paint(_cover(d, 3), _beard_color(w), 0.96)
    with canvas.window(130, 166, 50, 128, only=canvas.t.mustache) as w:
        x = (w.u - 2 * w.t.yaw) / (w.t.mouth_w + 2)
        d = np.abs(w.v - w.t.nose_v - 10 - 3 * x * x) - 4.2 * (1 - x * x)
        w.paint(_cover(np.maximum(d, np.abs(x) * 20 - 20), 2), _beard_color(w), 0.96)
    with canvas.window(84, 142, 30, 148, only=canvas.t.sideburns) as w:
        d = np.maximum(np.abs(_face_shape(w)[0] + 2.5) - 3.8, np.abs(w.v - 4) - 22)
        w.paint(_cover(d, 3), _beard_color(w))


def _beard_color(w: _Window) -> np.ndarray:
    tone = 0.76 + 0.04 * _wave(w.u / 9 + w.v / 17) + 0.03 * _wave(w.u / 5 - w.v / 9)
    return (w.t.hair_dark + w.t.hair_light) * (0.5 * tone)[:, None]


def _nose(canvas: _Canvas) -> None:
    """Paint the shadows of the nose: its dark side, wings, nostrils and tip."""
    with canvas.window(104, 152, 62, 115) as w:
        t, size = w.t, w.t.nose_w
        x = w.u - (4 / 25) * t.yaw * w.v
        y = w.v - t.nose_v
        a, away = np.abs(x), _either(t.light_u > 0, -1, 1)
        w.paint(_blob(x * away - 6, y + 12, 5, 24), t.skin_dark, 0.5)
        w.paint(_blob(x, y + 14, 3.5, 22), t.skin * 1.1 + 10, 0.35)
        w.paint(_blob(x, y - 4, size + 2, 5), t.skin_dark, 0.7)
        w.paint(_cover(_ellipse(x, y, size * 0.62, 6), 5), t.skin * 1.02, 0.55)
        wing = np.abs(_ellipse(a - 0.6 * size, y, 0.42 * size, 4.6)) - 0.7
        wing = np.maximum(wing, np.maximum(0.65 * size - a, -2 - y))
        w.paint(_cover(wing, 1.8), t.skin_dark * 0.8, 0.75)
        nostril = _ellipse(a - 0.42 * size, y - 3, 0.26 * size, 1.6)
        w.paint(_cover(nostril, 1.5), t.skin_dark * 0.45, 0.85)
        w.paint(_blob(x + 1.5 * away, y + 1.5, 3, 3), t.skin * 1.15 + 22, 0.5)


def _mouth(canvas: _Canvas) -> None:
    """Paint lips and opening, bounded by four parabolas between the corners."""
    with canvas.window(128, 186, 58, 120) as w:
        t = w.t
        x = (w.u - 2 * t.yaw) / t.mouth_w
        y = w.v - t.nose_v - 17
        xx = x * x
        dome = 1 - xx
        beyond = (np.abs(x) - 1) * 10
        middle = t.curve * (0.45 - xx)
        top, bottom = middle - 0.35 * t.gap * dome, middle + 0.65 * t.gap * dome
        bow = 0.8 - 0.3 * np.maximum(1 - 30 * xx, 0)
        above, below = top - t.lip * bow * dome, bottom + t.lip * dome
        w.paint(_blob(x, y - below - 3.5, 0.7, 4.5), t.skin_dark, 0.4)
        lips = _cover(np.maximum(np.maximum(above - y, y - below), beyond))
        w.paint(lips, t.lip_color * _either(y < middle, 0.86, 1)[:, None])
        shine = _blob(x + 0.15, y - 0.5 * (bottom + below), 0.45, 0.45 * t.lip)
        w.paint(shine, t.lip_color * 0.6 + 100, 0.4)
        hole = np.maximum(np.maximum(top - y, y - bottom), beyond)
        w.paint(_cover(hole), t.lip_color * 0.18 + rgb(26, 4, 6))
        teeth = np.maximum(hole + 0.9, y - middle - 0.3 * t.gap)
        w.paint(_cover(teeth), rgb(244, 240, 230), t.open)


def _eyes(canvas: _Canvas) -> None:
    for side, left in ((-1, 48), (1, 86)):
        with canvas.window(92, 130, left, left + 44) as w:
            _eye(w, side)


def _eye(w: _Window, side: int) -> None:
    """Paint one eye; x is -1 at the nose and 1 at the temple."""
    t = w.t
    width = t.eye_w * (1 - (0.12 * side) * t.yaw)
    x = (side * w.u - 19) / width
    y = w.v + t.eye_slant * width * x
    dome, ends = 1 - x * x, np.abs(x) * 8
    upper, lower = -t.eye_h * dome, 0.75 * t.eye_h * dome
    w.paint(_blob(x, y + 2, 1.7, 15), t.skin_dark, 0.35)
    w.paint(_blob(x, y + 6, 1.5, 10), t.shadow_color, 0.85 * t.makeup)
    bag = np.maximum(np.abs(y - lower - 5.5) - 0.9, ends - 6.5)
    w.paint(_cover(bag, 2.5), t.skin_dark * 0.82, 0.75 * t.bags)
    crease = np.maximum(np.abs(y - upper + 2.8) - 0.5, ends - 8)
    w.paint(_cover(crease, 1.5), t.skin_dark * 0.7, 0.6)
    inside = _cover(np.maximum(upper - y, y - lower))
    w.paint(inside, 238 - 60 * _cover(y - upper - 1.5, 4)[:, None])
    from_iris = np.sqrt((x * width - side * t.gaze) ** 2 + (y + 0.5) ** 2)
    ring = 0.75 + 0.4 * _cover(from_iris - 3.6, 2) - 0.4 * _cover(4.6 - from_iris, 1)
    w.paint(inside * _cover(from_iris - 5.3), t.iris * ring[:, None])
    w.paint(inside * _cover(from_iris - 2.4), 14)
    w.paint(inside * _cover(_ellipse(w.u - 19 * side - t.gaze + 1.7, y + 2.4, 1.4, 1.4)), 250)
    lid = np.maximum(np.abs(y - upper + 0.5) - _either(t.male, 0.7, 1.25 + 0.5 * x), ends - 9)
    w.paint(_cover(lid), t.skin_dark * 0.25)
    rim = np.maximum(np.abs(y - lower) - 0.4, ends - 7.6)
    w.paint(_cover(rim), t.skin_dark * 0.5, 0.55)


def _brows(canvas: _Canvas) -> None:
    for side, left in ((-1, 44), (1, 86)):
        with canvas.window(76, 114, left, left + 48) as w:
            t = w.t
            x = (side * w.u - 20) / 14
            bend = x - 0.25
            y = w.v - t.brow_y + t.brow_arch * (1 - bend * bend) + t.brow_tilt * x
            d = np.maximum(np.abs(y) - t.brow_h * (1.05 - 0.5 * x * x), (np.abs(x) - 1) * 12)
            w.paint(
                _cover(d, 1.8), t.hair_dark * _either(t.hair_color == BLACK, 1, 0.78)[:, None], 0.92
            )


def _earrings(canvas: _Canvas) -> None:
    for side, left in ((-1, 22), (1, 116)):
        with canvas.window(116, 162, left, left + 40, only=canvas.t.earrings) as w:
            t = w.t
            x = side * (w.u - t.head) - t.face_w - 1
            ring = np.abs(_ellipse(x, w.v - 28, 6, 8)) - 1.3
            d = np.where(t.hoop, ring, _ellipse(x, w.v - 25, 3.8, 4.6))
            w.paint(_cover(d - 0.8, 1.5), 40, 0.5)
            w.paint(_cover(d), t.metal)
            w.paint(_blob(x + 1, w.v - 23.5, 2, 2), 255, 0.9 * ~t.hoop)


def _hat(canvas: _Canvas) -> None:
    """Paint a cap, a beanie or a hat with a brim, down to the eyebrows."""
    with canvas.window(0, 112, 0, WIDTH, only=canvas.t.hat) as w:
        t, x, kind = w.t, w.u - w.t.head, w.t.hat_kind
        width = t.face_w + 8
        dome = _ellipse(x, np.minimum(w.v + 36, 0), width, _either(kind == BEANIE, 46, 38))
        felt = np.maximum(_ellipse(x, np.minimum(w.v + 60, 0), width - 4, 22), w.v + 28)
        crown = np.where(kind == BRIM, felt, np.maximum(dome, w.v + 26))
        bow = 0.004 * x * x
        visor = _ellipse(x - 16 * t.hat_turn, w.v + 24 + bow, width - 4, 9)
        visor = np.maximum(visor, -w.v - 34)
        brim = _ellipse(x, w.v + 28 - bow, width + 30, 8.5)
        edge = np.where(kind == CAP, visor, _either(kind == BRIM, brim, 9))
        cuff = w.v > -44
        tone = 0.9 + (0.006 * t.light_u) * x - 0.0001 * x * x
        tone += _either((kind == BEANIE) & cuff, 0.1 + 0.12 * _wave(x / 6))
        tone -= _either((kind == BRIM) & cuff, 0.5)
        w.paint(_cover(crown), t.hat_color * tone[:, None])
        w.paint(_cover(edge - 3, 8), t.skin_dark * 0.6, 0.35)
        w.paint(_cover(edge), t.hat_color * (0.82 * tone)[:, None])


def _glasses(canvas: _Canvas) -> None:
    with canvas.window(86, 140, 30, 148, only=canvas.t.glasses) as w:
        t, a = w.t, np.abs(w.u)
        corner = t.lens_round * np.minimum(t.lens_w, t.lens_h)
        x = np.abs(a - 19.5) - t.lens_w + corner
        y = np.abs(w.v - 1.5) - t.lens_h + corner
        out_x, out_y = np.maximum(x, 0), np.maximum(y, 0)
        d = np.sqrt(out_x * out_x + out_y * out_y) + np.minimum(np.maximum(x, y), 0) - corner
        glass = _either(t.sunglasses, 45 + 1.4 * w.v, 235)
        w.paint(_cover(d), glass[:, None], _either(t.sunglasses, 0.93, 0.1))
        glint = np.abs(w.u - 0.8 * w.v - _either(w.u > 0, 14, -14)) - 1.5
        w.paint(_cover(np.maximum(d + 2, glint), 1.5), 255, 0.35)
        bridge = np.maximum(a - 19.5, np.abs(w.v + 2 - 0.03 * a * a) - 0.4)
        temple = np.maximum(np.abs(w.v + 2) - 0.4, np.abs(w.u - t.head) - t.face_w + 3)
        rods = np.minimum(bridge, np.maximum(temple, 19.5 - a))
        w.paint(_cover(np.minimum(np.abs(d), np.maximum(rods, -d)) - t.frame_h), t.frame)


# Finished images.


def _blur(canvas: _Canvas) -> None:
    """Blur by reducing to a quarter and enlarging again."""
    with canvas.window(0, HEIGHT, 0, WIDTH, only=canvas.t.blurry) as w:
        near = np.pad(w.rgb, ((0, 0), (0, 0), (4, 6), (4, 6)), mode="edge")
        tall = np.mean([near[:, :, k : k + HEIGHT + 3 : 4] for k in range(8)], axis=0)
        small = np.mean([tall[..., k : k + WIDTH + 3 : 4] for k in range(8)], axis=0)
        soft = np.empty((len(small), 3, HEIGHT + 2, WIDTH + 2), np.float32)
        _stretch(small, soft)
        w.rgb[...] = soft[:, :, :HEIGHT, :WIDTH]


_GRAIN = (mix(np.arange(512 * 512, dtype=np.uint64)) >> np.uint64(40)).astype(np.float32)
_GRAIN = (_GRAIN * np.float32(6 / 2**24) - np.float32(2.5)).reshape(512, 512)  # +-3, half to round


# fmt: off
_PAINTERS = (
    _hair_behind, _neck, _shirt, _clothes, _necklace, _ears, _face, _cheeks, _wrinkles, _beard,
    _nose, _mouth, _eyes, _brows, _hair_in_front, _earrings, _hat, _glasses, _blur,
)
"""Back to front."""
# fmt: on


def paint(traits: Traits) -> np.ndarray:
    """Render faces: uint8 (n, 218, 178, 3), RGB."""
    num_faces = traits.length.size
    images = np.empty((num_faces, HEIGHT, WIDTH, 3), np.uint8)
    canvas = _Canvas(min(_CHUNK, num_faces))
    order = np.argsort(np.minimum(traits.length, MEDIUM).ravel(), kind="stable")
    for start in range(0, num_faces, _CHUNK):  # hair of similar length shares a window
        part = order[start : start + _CHUNK]
        canvas.start(traits[part])
        for painter in _PAINTERS:
            painter(canvas)
        for index, pixels, grain in zip(part, canvas.rgb, canvas.t.grain.ravel(), strict=True):
            _add_grain(pixels, grain, images[index])
    return images


def _add_grain(pixels: np.ndarray, grain: int, image: np.ndarray) -> None:
    """Add noise to pixels, float32 (3, 218, 178), and write them to image, uint8 (218, 178, 3)."""
    top, left = grain // 1024 % (512 - HEIGHT), grain % (512 - WIDTH)
    grainy = pixels + _GRAIN[top : top + HEIGHT, left : left + WIDTH]
    planes = np.clip(grainy, 0, 255, out=grainy).astype(np.uint8)
    for channel in range(3):  # twice as fast as one transposed copy
        image[..., channel] = planes[channel]
