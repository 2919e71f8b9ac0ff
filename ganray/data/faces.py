"""Procedural aligned faces in CelebA's own layout: the stand-in for a machine without CelebA.

A face is a pure function of `(rng_seed, index)`. A counter-based hash throws the dice, the dice
give the traits, painters put the traits on a canvas, back to front. Pixels only ever meet + - * /,
sqrt, rint, min and max, which IEEE 754 rounds exactly, so a face has the same bytes in any batch,
in any process and on any machine. Shapes are signed distances `d` (negative inside), anti-aliased
by `clip(0.5 - d / softness)`, in the face's own frame: `u` to the right and `v` down, in pixels,
zero between the eyes, so that the eyes are at u = -19 and 19 and the mouth is near v = 42.
"""

import io
import itertools
import json
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

VERSION = 1
"""Of the drawing; raise it whenever a pixel or an attribute of any face changes."""

HEIGHT, WIDTH = 218, 178

Number = float | np.ndarray

# fmt: off
ATTRIBUTE_NAMES: tuple[str, ...] = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin",
    "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)
"""CelebA's 40 names in CelebA's order."""
# fmt: on

DRAWN_ATTRIBUTES: tuple[str, ...] = tuple(n for n in ATTRIBUTE_NAMES if n != "Attractive")
"""The names that the drawing depicts; the others are -1 in every row."""

# fmt: off
SKINS = [(253, 225, 206), (246, 204, 172), (232, 182, 142), (206, 148, 106), (156, 102, 70),
         (104, 66, 48), (78, 50, 40)]
HAIRS = [(30, 25, 28), (96, 58, 34), (224, 188, 118), (178, 178, 182), (164, 68, 28)]
IRISES = [(84, 52, 30), (112, 78, 44), (96, 122, 74), (86, 132, 172), (120, 136, 146), (60, 40, 30)]
FRAMES = [(28, 26, 30), (92, 52, 30), (186, 146, 70), (150, 32, 40), (40, 64, 120), (70, 74, 84)]
FABRICS = [(196, 60, 56), (44, 84, 148), (48, 120, 88), (236, 232, 222), (40, 42, 50),
           (226, 168, 60), (136, 84, 150), (120, 150, 178), (232, 140, 150), (110, 92, 76)]
SUITS = [(40, 42, 52), (52, 60, 84), (92, 84, 78), (30, 30, 34)]
SHADOWS = [(96, 60, 92), (70, 84, 120), (120, 70, 50), (60, 50, 56)]
LIPSTICKS = [(196, 30, 52), (214, 66, 96), (150, 24, 60), (224, 84, 70)]
METALS = [(226, 182, 76), (214, 216, 222), (240, 234, 224), (70, 160, 170)]
# fmt: on
BLACK, BROWN, BLOND, GRAY, RED = range(5)
BALD, SHORT, MEDIUM, LONG = range(4)
SHAVEN, STUBBLE, MUSTACHE, GOATEE, BEARD = range(5)
TEE, V_NECK, SUIT = range(3)
CAP, BEANIE, BRIM = range(3)

_IMAGES_FILE, _ATTRIBUTES_FILE = "img_align_celeba.zip", "list_attr_celeba.txt"
_PARTITION_FILE = "list_eval_partition.txt"
_SPLIT = (162_770, 19_867, 19_962)  # CelebA's train, valid, test
_CHUNK = 16  # faces painted at once: enough to hide numpy's call overhead, few for the cache
_TASK = 128  # faces a process draws before it hands them over


# Dice and traits.


def _mix(bits: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: uint64 -> uint64, a bijection in which every bit stirs all."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class _Dice:
    """Throw k of face i depends on (rng_seed, i, k) only; k counts the throws made so far."""

    _STEP = 0x9E3779B97F4A7C15

    def __init__(self, rng_seed: int, indices: np.ndarray) -> None:
        seed = _mix(np.array([rng_seed % 2**64], np.uint64))
        self._faces = _mix(seed + np.asarray(indices).astype(np.uint64) * np.uint64(self._STEP))
        self._throws = 0

    def __call__(self, low=0.0, high=1.0) -> np.ndarray:
        """Uniform float32 (n, 1, 1) in [low, high); the bounds may differ per face."""
        self._throws += 1
        bits = _mix(self._faces + np.uint64(self._throws * self._STEP % 2**64))
        unit = (bits >> np.uint64(40)).astype(np.float32).reshape(-1, 1, 1) * np.float32(2**-24)
        return low + (high - low) * unit

    def chance(self, probability) -> np.ndarray:
        """Bool (n, 1, 1)."""
        return self() < probability

    def pick(self, *weights) -> np.ndarray:
        """Intp (n, 1, 1) in [0, len(weights)), with these odds; a weight may differ per face."""
        throw = self() * sum(weights)
        edges = np.stack([edge + 0 * throw for edge in itertools.accumulate(weights[:-1])])
        return (throw >= edges).sum(axis=0)

    def colour(self, palette: list[tuple[int, int, int]]) -> np.ndarray:
        """One of the palette, a little lighter or darker: float32 (n, 3, 1, 1)."""
        return _colour(palette, self.pick(*[1.0] * len(palette))) * self(0.88, 1.08)[:, None]


def _colour(palette: list[tuple[int, int, int]], choice: np.ndarray) -> np.ndarray:
    return np.asarray(palette, np.float32)[choice.ravel(), :, None, None]


class _Traits:
    """Structure of arrays, one row per face: numbers and flags (n, 1, 1), colours (n, 3, 1, 1).

    `traits[who]` is the traits of some faces; a painter asks for few, so each is cut when asked.
    """

    def __init__(self, whole: "_Traits | None" = None, who=None) -> None:
        self._whole, self._who = whole, who

    def __getitem__(self, who) -> "_Traits":
        return _Traits(self, who)

    def __setattr__(self, name: str, values) -> None:
        if getattr(values, "dtype", None) == np.float64:  # a flag times a Python number
            values = values.astype(np.float32)
        super().__setattr__(name, values)

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_"):
            raise AttributeError(name)
        values = getattr(self._whole, name)[self._who]
        setattr(self, name, values)
        return values


def _traits(rng_seed: int, indices: np.ndarray) -> _Traits:
    """All that is random about the faces; the order of the throws is part of `VERSION`."""
    t, dice = _Traits(), _Dice(rng_seed, indices)
    _roll_pose(t, dice)
    _roll_person(t, dice)
    _roll_hair(t, dice)
    _roll_features(t, dice)
    _roll_dress(t, dice)
    return t


def _roll_pose(t: _Traits, dice: _Dice) -> None:
    """Where the head is, and the light and the room around it."""
    half = (dice() + dice() - 1) * 0.055  # tan(angle / 2): a rotation without sin and cos
    t.cos, t.sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    t.zoom = dice(0.94, 1.06)
    t.eye_x, t.eye_y = 88.5 + dice(-2, 2), 111.5 + dice(-2, 2)
    t.yaw = dice() + dice() - 1  # > 0: the nose points to the right of the picture
    t.light_u, t.light_v = dice(-0.8, 0.8), dice(-0.6, 0.0)
    t.blurry = dice.chance(0.05)
    t.grain = dice(0, 2**20).astype(np.intp)
    light, vivid = dice(50, 205), 70 * dice() * dice(0.2, 1)
    t.wall = np.stack([light + vivid * dice(-1, 1) for _ in range(3)], 1)
    far, vivid = light * dice(0.5, 1.2), 60 * dice()
    t.wall_far = np.stack([far + vivid * dice(-1, 1) for _ in range(3)], 1)
    t.wall_edge_u, t.wall_edge_v = dice(-1, 1), dice(-0.5, 0.5)
    t.wall_edge = dice(-70, 70)
    t.wall_sharp = dice(4, 90)
    spots = [[dice(0, 178), dice(0, 218), dice(14, 50), dice(-0.3, 0.35)] for _ in range(5)]
    t.spots = np.stack([np.stack(spot, 1) for spot in spots], 1)  # x, y, radius, strength


def _roll_person(t: _Traits, dice: _Dice) -> None:
    """Sex, age, skin and the outline of the head."""
    t.male, t.old = dice.chance(0.44), dice.chance(0.25)
    t.pale = dice.chance(0.08)
    t.melanin = np.where(t.pale, 0, dice(0.08, 1) * dice(0.45, 1))
    shade = t.melanin * (len(SKINS) - 1)
    below = np.minimum(shade.astype(np.intp), len(SKINS) - 2)
    light, dark = _colour(SKINS, below), _colour(SKINS, below + 1)
    t.skin = light + (dark - light) * (shade - below)[:, None]
    t.skin += np.where(t.pale[:, None], _rgb(0, 3, 6), _rgb(5, -3, -6) * dice(-1, 1)[:, None])
    t.skin_dark = t.skin * _rgb(0.66, 0.54, 0.50)
    t.oval = dice.chance(0.3)
    t.chubby = dice.chance(0.12) & ~t.oval
    t.double_chin = t.chubby & dice.chance(0.5)
    t.face_w = 44.5 + 1.5 * t.male + 5.0 * t.chubby - 2.5 * t.oval + dice(-1, 1)
    t.chin = 64 + 4.0 * t.male + 5.0 * t.oval + dice(-2, 2)
    t.square = np.where(t.oval, 0, 0.05 + 0.18 * t.male + 0.12 * t.chubby)
    t.taper = 0.22 + 0.08 * t.oval - 0.10 * t.male - 0.14 * t.chubby + dice(-0.05, 0.05)
    t.neck_w = 22 + 5.0 * t.male + 4.0 * t.chubby + dice(-1, 1)
    t.head = -4 * t.yaw


def _roll_hair(t: _Traits, dice: _Dice) -> None:
    """Hair, hat and beard."""
    dark, fair, old = 1.0 * (t.melanin > 0.42), 1.0 * (t.melanin <= 0.42), 1.0 * t.old
    blond, brown = 0.01 + 0.35 * fair, 0.3 + 0.1 * fair
    t.colour = dice.pick(0.2 + dark, brown, blond, 0.02 + 0.9 * old, 0.1 * fair)
    hair = _colour(HAIRS, t.colour) * dice(0.85, 1.1)[:, None]
    t.hair_dark, t.hair_light = hair * 0.62, hair * 1.18 + 8
    male, female = 1.0 * t.male, 1.0 * ~t.male
    bald, short = male * (0.06 + 0.12 * old), 0.8 * male + 0.13 * female
    t.length = dice.pick(bald, short, 0.08 * male + 0.35 * female, 0.03 * male + 0.52 * female)
    t.hat = dice.chance(0.07)
    t.hat_kind, t.hat_colour = dice.pick(1, 1, 1), dice.colour(FABRICS)
    t.hat_turn = dice(-1, 1)
    t.haired = (t.length > SHORT) | ((t.length == SHORT) & ~t.hat)  # a hat swallows short hair
    t.wavy = t.haired & dice.chance(0.42)
    t.bangs = t.haired & ~t.hat & dice.chance(0.14 + 0.14 * female)
    t.receding = (t.length == SHORT) & t.haired & ~t.bangs & dice.chance(0.02 + 0.3 * old * male)
    t.hair_end = dice(-12, 4) + 46 * (t.length == MEDIUM) + 96 * (t.length == LONG)
    t.hair_end += dice(-8, 16) * (t.length == MEDIUM)
    puff = dice(2, 9) + (t.length > SHORT) * 2 + t.wavy * dice(2, 7)
    t.puff = np.where(t.hat, 4, np.where(t.receding, 3, puff))
    t.puff_top = np.where(t.hat, 0, np.minimum(t.puff * dice(0.7, 1.6), 20))
    t.flare = np.where(t.length > SHORT, dice(-0.16, 0.12) + t.wavy * dice(0, 0.1), -0.6)
    t.curl, t.curl_size = t.wavy * dice(1.4, 2.6), dice(20, 36)
    t.strands, t.phase = dice(7, 11), dice()
    t.hairline = np.where(t.bangs, dice(18, 23), np.where(t.receding, 54, dice(36, 42)))
    peak = np.where(t.length > SHORT, dice(-0.1, 0.8), dice(-0.35, 0.2))
    t.peak = np.where(t.bangs, -0.55, np.where(t.receding, -0.22, peak))
    t.sweep = np.where(t.bangs | t.receding, dice(-0.1, 0.1), dice(-0.45, 0.45))
    t.jag = np.where(t.bangs, dice(0.6, 1.6), 0.5)
    t.temple = np.where(t.length > SHORT, dice(6, 11), dice(3, 6))
    t.part_open = dice(0, 0.5)
    t.facial = t.male * dice.pick(0.5, 0.17, 0.08, 0.11, 0.16)
    t.double_chin &= t.facial <= MUSTACHE  # a beard would hide it
    t.mustache = (t.facial == MUSTACHE) | (t.facial == BEARD)
    t.mustache |= (t.facial == GOATEE) & dice.chance(0.6)
    t.sideburns = t.male & (t.length == SHORT) & t.haired & dice.chance(0.25)


def _roll_features(t: _Traits, dice: _Dice) -> None:
    """Eyes, brows, nose, mouth and what time and blood do to the cheeks."""
    fair = 1.0 * (t.melanin <= 0.45)
    t.iris = _colour(IRISES, dice.pick(1, 1, 0.7 * fair, fair, 0.7 * fair, 1.7 - fair))
    t.narrow = dice.chance(0.13)
    t.eye_w = dice(9.2, 10.8)
    t.eye_h = np.where(t.narrow, dice(2.0, 2.6), dice(4.2, 6.0))
    t.eye_slant, t.gaze = dice(-0.02, 0.14), dice(-1.5, 1.5)
    t.bags = dice.chance(0.12 + 0.2 * t.old)
    t.bushy = dice.chance(0.08 + 0.2 * t.male)
    t.arched = dice.chance(0.42 - 0.3 * t.male) & ~t.bushy
    t.brow_h = np.where(t.bushy, dice(3.3, 4.1), dice(1.5, 2.3) + 0.4 * t.male)
    t.brow_arch = np.where(t.arched, dice(5.5, 8), dice(1, 3))
    t.brow_y, t.brow_tilt = dice(-14.5, -12), dice(-3, 0.5)
    t.pointy = dice.chance(0.27)
    t.big_nose = dice.chance(0.16 + 0.12 * t.male) & ~t.pointy
    t.nose_w = 8.2 + 4.3 * t.big_nose - 2.2 * t.pointy + dice(-0.6, 0.6)
    t.nose_v = 25 + 2.5 * t.big_nose + 2 * t.pointy + dice(-1, 1)
    t.smile = dice.chance(0.5)
    t.open = dice.chance(0.2 + 0.45 * t.smile)
    t.gap = np.where(t.open, np.where(t.smile, dice(5, 9), dice(4, 8)), 1.2)
    t.curve = np.where(t.smile, dice(5.5, 8.5), dice(-2, 1))
    t.mouth_w = np.where(t.smile, dice(18, 22), dice(13, 16))
    t.big_lips = dice.chance(0.24)
    t.lip = np.where(t.big_lips, dice(5.2, 6.5), dice(2.4, 3.6))
    t.makeup = ~t.male & dice.chance(0.42)
    t.lipstick = t.makeup | (~t.male & dice.chance(0.3))
    natural = t.skin * _rgb(0.86, 0.62, 0.60) + _rgb(8, 0, 4)
    t.lip_colour = np.where(t.lipstick[:, None], dice.colour(LIPSTICKS), natural)
    t.shadow_colour = dice.colour(SHADOWS)
    t.rosy = dice.chance(0.05 + 0.12 * ~t.male)
    t.cheekbones = dice.chance(0.25 + 0.35 * t.smile) & ~t.chubby


def _roll_dress(t: _Traits, dice: _Dice) -> None:
    """Glasses, jewels and clothes."""
    t.glasses = dice.chance(0.09 + 0.12 * t.old)
    t.sunglasses = t.glasses & dice.chance(0.2)
    t.frame = dice.colour(FRAMES)
    t.lens_w, t.lens_h = dice(13, 15.5), dice(9.5, 13)
    t.lens_round, t.frame_h = dice(0.25, 1), dice(1.1, 2.0)
    t.earrings = dice.chance(0.04 + 0.38 * ~t.male)
    t.hoop, t.metal = dice.chance(0.4), dice.colour(METALS)
    t.outfit = dice.pick(0.5 + 0.2 * t.male, 0.5, 0.08 + 0.5 * t.male)
    t.necktie = (t.outfit == SUIT) & t.male & dice.chance(0.75)
    t.necklace = (t.outfit != SUIT) & dice.chance(0.03 + 0.3 * ~t.male)
    t.beads = dice.chance(0.4)
    t.cloth, t.tie = dice.colour(FABRICS), dice.colour(FABRICS)
    t.cloth = np.where((t.outfit == SUIT)[:, None], dice.colour(SUITS), t.cloth)
    t.striped, t.stripe = (t.outfit == TEE) & dice.chance(0.3), dice.colour(FABRICS)
    t.vee = np.where(t.outfit == SUIT, 40, dice(18, 30))
    t.shoulder, t.slope = dice(80, 86) - 2.0 * t.male, dice(0.18, 0.34) - 0.06 * t.male


def _attributes(t: _Traits) -> np.ndarray:
    """What is true of the drawing: int8 (n, 40), 1 for yes and -1 for no."""
    facts = {
        "5_o_Clock_Shadow": t.facial == STUBBLE,
        "Arched_Eyebrows": t.arched,
        "Bags_Under_Eyes": t.bags & ~t.sunglasses,
        "Bald": (t.length == BALD) & ~t.hat,
        "Bangs": t.bangs,
        "Big_Lips": t.big_lips,
        "Big_Nose": t.big_nose,
        "Black_Hair": t.haired & (t.colour == BLACK),
        "Blond_Hair": t.haired & (t.colour == BLOND),
        "Blurry": t.blurry,
        "Brown_Hair": t.haired & (t.colour == BROWN),
        "Bushy_Eyebrows": t.bushy,
        "Chubby": t.chubby,
        "Double_Chin": t.double_chin,
        "Eyeglasses": t.glasses,
        "Goatee": t.facial == GOATEE,
        "Gray_Hair": t.haired & (t.colour == GRAY),
        "Heavy_Makeup": t.makeup,
        "High_Cheekbones": t.cheekbones,
        "Male": t.male,
        "Mouth_Slightly_Open": t.open,
        "Mustache": t.mustache,
        "Narrow_Eyes": t.narrow & ~t.sunglasses,
        "No_Beard": t.facial == SHAVEN,
        "Oval_Face": t.oval,
        "Pale_Skin": t.pale,
        "Pointy_Nose": t.pointy,
        "Receding_Hairline": t.receding,
        "Rosy_Cheeks": t.rosy,
        "Sideburns": t.sideburns,
        "Smiling": t.smile,
        "Straight_Hair": t.haired & ~t.wavy,
        "Wavy_Hair": t.wavy,
        "Wearing_Earrings": t.earrings,
        "Wearing_Hat": t.hat,
        "Wearing_Lipstick": t.lipstick,
        "Wearing_Necklace": t.necklace,
        "Wearing_Necktie": t.necktie,
        "Young": ~t.old,
    }
    rows = np.full((t.male.size, len(ATTRIBUTE_NAMES)), -1, np.int8)
    for name, fact in facts.items():
        rows[fact.ravel(), ATTRIBUTE_NAMES.index(name)] = 1
    return rows


# Pencils: signed distances, coverages, waves.


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _either(flag: np.ndarray, yes: Number, no: Number = 0.0) -> np.ndarray:
    """np.where in float32, so that a flag does not turn the pixels into float64."""
    return np.where(flag, np.float32(yes), np.float32(no))


def _plus(x: np.ndarray) -> np.ndarray:
    """np.maximum(x, 0) in a third of the time."""
    return np.clip(x, 0, 1e6)


def _cover(d: np.ndarray, softness: Number = 1.2) -> np.ndarray:
    """Signed distance (negative inside) -> coverage in [0, 1]."""
    d = d * (-1 / softness)
    d += 0.5
    return np.clip(d, 0, 1, out=d)


def _ellipse(x, y, rx, ry) -> np.ndarray:
    """Signed distance (nearly) to an ellipse about zero."""
    x, y = x / rx, y / ry
    return (np.sqrt(x * x + y * y) - 1) * np.minimum(rx, ry)


def _blob(x, y, rx, ry) -> np.ndarray:
    """A smooth bump: 1 at zero, 0 on the ellipse and beyond."""
    x, y = x / rx, y / ry
    bump = _plus(1 - x * x - y * y)
    return bump * bump


def _wave(x) -> np.ndarray:
    """A sine made of parabolas, of period 1 and amplitude 1."""
    x = x - np.rint(x)
    slope = np.abs(x)
    slope *= -16
    slope += 8
    slope *= x
    return slope


class _Window:
    """A box of pixels of some faces: `t` their traits, `u` and `v` (m, h, w) face coordinates."""

    def __init__(self, t: _Traits, rgb: np.ndarray, u: np.ndarray, v: np.ndarray, scratch) -> None:
        self.t, self.rgb, self.u, self.v = t, rgb, u, v
        self.column = u[:, :1]  # (m, 1, w): nearly u, for what need not turn with the head
        self._scratch = scratch[: rgb.size].reshape(rgb.shape)

    def paint(self, coverage: np.ndarray, colour, strength=None) -> None:
        """Lay a colour, (m, 3, 1, 1) or per pixel, over the pixels as far as it covers them."""
        if strength is not None:
            coverage = coverage * np.asarray(strength, np.float32)
        change = np.subtract(colour, self.rgb, out=self._scratch)
        change *= coverage[:, None]
        self.rgb += change

    def model(self, coverage: np.ndarray, dark, light, tone: np.ndarray) -> None:
        """Paint from dark (where the tone is 0) to light (1): what a round thing looks like."""
        change = np.multiply(tone[:, None], light - dark, out=self._scratch)
        change += dark
        change -= self.rgb
        change *= coverage[:, None]
        self.rgb += change


def _paper(num_faces: int) -> np.ndarray:
    """Memory for a canvas, to use again: a fresh page costs more than the paint on it."""
    return np.empty((num_faces, 5, HEIGHT + 2, WIDTH + 2), np.float32)  # rgb, u, v


class _Canvas:
    """The pictures in work: float32 (n, 3, 218, 178) in [0, 255]."""

    def __init__(self, t: _Traits, paper: np.ndarray) -> None:
        self.t, n = t, t.male.size
        _wall(t, paper[:n, :3])
        self.rgb, self._u, self._v = paper[:n, :3, :HEIGHT, :WIDTH], paper[:n, 3], paper[:n, 4]
        self._scratch = np.empty(self.rgb.size, np.float32)
        x = np.arange(paper.shape[3], dtype=np.float32) - t.eye_x
        y = np.arange(paper.shape[2], dtype=np.float32)[:, None] - t.eye_y
        cos, sin = t.cos / t.zoom, t.sin / t.zoom
        np.add(cos * x, sin * y, out=self._u)
        np.subtract(cos * y, sin * x, out=self._v)
        self.hair: list[tuple[np.ndarray, np.ndarray]] = []  # from behind, kept for in front

    @contextmanager
    def window(self, top: int, bottom: int, left: int, right: int, only=None) -> Iterator[_Window]:
        """Open a box for painting on the faces that `only`, a bool (n, 1, 1), picks."""
        who = slice(None) if only is None or only.all() else np.flatnonzero(only)
        box = (who, ..., slice(top, bottom), slice(left, right))
        pixels = self.rgb[box]
        yield _Window(self.t[who], pixels, self._u[box], self._v[box], self._scratch)
        if not isinstance(who, slice):  # then the pixels are a copy
            self.rgb[box] = pixels


# Painters, from the wall to the spectacles.


def _wall(t: _Traits, rgb: np.ndarray) -> None:
    """A room out of focus, into (n, 3, 220, 180): painted at a quarter of the size, stretched."""
    x = np.arange(0, WIDTH + 6, 4, dtype=np.float32)
    y = np.arange(0, HEIGHT + 6, 4, dtype=np.float32)[:, None]
    d = t.wall_edge_u * (x - WIDTH / 2) + t.wall_edge_v * (y - HEIGHT / 2) - t.wall_edge
    small = t.wall + _cover(d, t.wall_sharp)[:, None] * (t.wall_far - t.wall)
    for spot in range(t.spots.shape[1]):
        at_x, at_y, radius, strength = (t.spots[:, spot, k] for k in range(4))
        light = np.minimum(_blob(x - at_x, y - at_y, radius, radius) * 2, 1) * strength
        small *= 1 + light[:, None]
    _stretch(small, rgb)


def _stretch(small: np.ndarray, rgb: np.ndarray) -> None:
    """Linear between pixels: (n, 3, h, w) into (n, 3, 4h - 4, 4w - 4), four times the size."""
    wide = np.empty((*small.shape[:3], rgb.shape[3]), np.float32)
    step = np.diff(small) / 4
    for k in range(4):
        wide[..., k::4] = small[..., :-1] + k * step
    step = np.diff(wide, axis=2) / 4
    for k in range(4):
        np.multiply(step, k, out=rgb[:, :, k::4])
        rgb[:, :, k::4] += wide[:, :, :-1]


def _hair_shape(t: _Traits, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole mop, a dome above a column: coverage, and tone by strand."""
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
    strand = side / (v + 130)  # all from one point above the crown
    strand *= t.strands
    strand += t.phase
    strand += 0.06 * curls
    tone = 0.16 * _wave(strand)
    strand *= 2.7
    strand -= np.rint(strand)
    tone += 0.5 * np.abs(strand)
    radius -= 0.78
    tone += _plus(0.5 - np.abs(radius) / 0.3) * height  # the sheen
    x *= 0.28 * t.light_u
    tone += x
    tone += 0.28
    return _cover(d, 2), tone


def _twice(rows: np.ndarray) -> np.ndarray:
    """Every other row filled in: (m, h, w) -> (m, 2h, w)."""
    full = np.repeat(rows, 2, axis=1)
    full[:, 1:-1:2] += rows[:, 1:]
    full[:, 1:-1:2] *= 0.5
    return full


def _hairs(t: _Traits) -> list[tuple[tuple[int, int, int, int], np.ndarray]]:
    """A box that just holds it, and on whom, for each length of hair."""
    tall = t.length > SHORT
    return [((14, 126, 16, 162), t.haired & ~tall), ((14, HEIGHT, 6, 172), t.haired & tall)]


def _hair_behind(canvas: _Canvas) -> None:
    for box, who in _hairs(canvas.t):
        with canvas.window(*box, only=who) as w:
            # Strands hang, so every other row tells all, in half the time.
            coverage, tone = map(_twice, _hair_shape(w.t, w.u[:, ::2], w.v[:, ::2]))
            canvas.hair.append((coverage, tone))
            w.paint(coverage, w.t.hair_dark * 0.8)


def _hair_in_front(canvas: _Canvas) -> None:
    """The mop less an opening for the face; its shadow falls on the brow."""
    for (box, who), (coverage, tone) in zip(_hairs(canvas.t), canvas.hair, strict=True):
        with canvas.window(*box, only=who) as w:
            t, side = w.t, w.u - w.t.head
            width = t.face_w - t.temple
            a = np.abs(side) / (width + width * t.part_open * _plus(w.v) / 100)
            b = _plus(-w.v - t.sweep * side) / t.hairline
            opening = np.sqrt(a * a + b * b)
            opening += t.peak * (a + b - opening) - 1
            opening *= width
            opening += t.jag * (_wave(w.column / 7.3 + t.phase) + _wave(w.column / 4.1))
            w.paint(np.clip(1 + opening / 8, 0, 1) * coverage, t.skin_dark * 0.8, 0.4)
            w.model(coverage * _cover(-opening, 2), t.hair_dark, t.hair_light, tone)


def _neck(canvas: _Canvas) -> None:
    with canvas.window(160, HEIGHT, 36, 142) as w:
        t = w.t
        d = np.abs(w.u - t.head / 2) - t.neck_w - 0.02 * np.maximum(w.v - 68, 0) ** 2
        tone = np.clip((w.v - t.chin) / 24, 0.1, 0.9) + (0.3 / 25) * t.light_u * w.u
        w.model(_cover(d), t.skin_dark, t.skin, tone)


def _shirt(canvas: _Canvas) -> None:
    """What shows of shirt and tie between the lapels of a suit."""
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
    """A string of beads, or a chain with a pendant."""
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
    """An egg with cheeks: signed distance, coordinates in the unit egg and squared radius."""
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
    """The egg, lit from the side."""
    with canvas.window(36, 196, 28, 150) as w:
        t = w.t
        d, x, y, radius = _face_shape(w)
        tone = 1.05 - 0.34 * radius
        tone += (0.42 * t.light_u) * x
        tone += (0.20 * t.light_v) * y
        np.clip(tone, 0, 1.15, out=tone)
        w.model(_cover(d), t.skin_dark, t.skin, tone)


def _cheeks(canvas: _Canvas) -> None:
    """Blush, cheekbones and the folds beside the mouth."""
    with canvas.window(112, 172, 40, 138) as w:
        t, a, v = w.t, np.abs(w.u - w.t.head / 3), w.v
        rose = _either(t.rosy, 0.8, _either(t.makeup, 0.25, 0.1))
        w.paint(_blob(a - 26, v - 22, 17, 14), t.skin * _rgb(1.0, 0.60, 0.62), rose)
        w.paint(
            _blob(a - 30 + 0.5 * (v - 13), v - 13, 13, 8), t.skin * 1.1 + 14, 0.55 * t.cheekbones
        )
        w.paint(_blob(a - 30 + 0.6 * (v - 34), v - 34, 13, 12), t.skin_dark, 0.4 * t.cheekbones)
        down = v - 24
        fold = np.abs(a - t.nose_w - 3 - 0.42 * down + 0.012 * down * down) - 0.8
        fold = np.maximum(fold, np.abs(down - 9) - 10)
        w.paint(_cover(fold, 2.5), t.skin_dark * 0.9, 0.2 * t.smile + 0.5 * t.old)


def _wrinkles(canvas: _Canvas) -> None:
    """The lines of years on the forehead, those of pounds under the chin."""
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
        w.paint(_cover(d, 5), _beard_colour(w), _either(full, 0.96, 0.42))
    with canvas.window(130, 200, 50, 128, only=kind == GOATEE) as w:
        d = _ellipse(w.u - w.t.yaw, w.v - w.t.chin + 10, 15, 17)
        w.paint(_cover(d, 3), _beard_colour(w), 0.96)
    with canvas.window(130, 166, 50, 128, only=canvas.t.mustache) as w:
        x = (w.u - 2 * w.t.yaw) / (w.t.mouth_w + 2)
        d = np.abs(w.v - w.t.nose_v - 10 - 3 * x * x) - 4.2 * (1 - x * x)
        w.paint(_cover(np.maximum(d, np.abs(x) * 20 - 20), 2), _beard_colour(w), 0.96)
    with canvas.window(84, 142, 30, 148, only=canvas.t.sideburns) as w:
        d = np.maximum(np.abs(_face_shape(w)[0] + 2.5) - 3.8, np.abs(w.v - 4) - 22)
        w.paint(_cover(d, 3), _beard_colour(w))


def _beard_colour(w: _Window) -> np.ndarray:
    tone = 0.76 + 0.04 * _wave(w.u / 9 + w.v / 17) + 0.03 * _wave(w.u / 5 - w.v / 9)
    return (w.t.hair_dark + w.t.hair_light) * (0.5 * tone)[:, None]


def _nose(canvas: _Canvas) -> None:
    """Mostly shadows: the dark flank, the two wings, the nostrils and what the tip throws."""
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
    """Four parabolas between the corners: lip, opening, opening, lip."""
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
        w.paint(lips, t.lip_colour * _either(y < middle, 0.86, 1)[:, None])
        shine = _blob(x + 0.15, y - 0.5 * (bottom + below), 0.45, 0.45 * t.lip)
        w.paint(shine, t.lip_colour * 0.6 + 100, 0.4)
        hole = np.maximum(np.maximum(top - y, y - bottom), beyond)
        w.paint(_cover(hole), t.lip_colour * 0.18 + _rgb(26, 4, 6))
        teeth = np.maximum(hole + 0.9, y - middle - 0.3 * t.gap)
        w.paint(_cover(teeth), _rgb(244, 240, 230), t.open)


def _eyes(canvas: _Canvas) -> None:
    for side, left in ((-1, 48), (1, 86)):
        with canvas.window(92, 130, left, left + 44) as w:
            _eye(w, side)


def _eye(w: _Window, side: int) -> None:
    """One eye; x runs from -1 at the nose to 1 at the temple."""
    t = w.t
    width = t.eye_w * (1 - (0.12 * side) * t.yaw)
    x = (side * w.u - 19) / width
    y = w.v + t.eye_slant * width * x
    dome, ends = 1 - x * x, np.abs(x) * 8
    upper, lower = -t.eye_h * dome, 0.75 * t.eye_h * dome
    w.paint(_blob(x, y + 2, 1.7, 15), t.skin_dark, 0.35)
    w.paint(_blob(x, y + 6, 1.5, 10), t.shadow_colour, 0.85 * t.makeup)
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
                _cover(d, 1.8), t.hair_dark * _either(t.colour == BLACK, 1, 0.78)[:, None], 0.92
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
    """A cap, a beanie or a hat with a brim, down to just above the brows."""
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
        w.paint(_cover(crown), t.hat_colour * tone[:, None])
        w.paint(_cover(edge - 3, 8), t.skin_dark * 0.6, 0.35)
        w.paint(_cover(edge), t.hat_colour * (0.82 * tone)[:, None])


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


# From the wall to the finished picture.


def _blur(canvas: _Canvas) -> None:
    """Out of focus: shrunk to a quarter and stretched again."""
    with canvas.window(0, HEIGHT, 0, WIDTH, only=canvas.t.blurry) as w:
        near = np.pad(w.rgb, ((0, 0), (0, 0), (4, 6), (4, 6)), mode="edge")
        tall = np.mean([near[:, :, k : k + HEIGHT + 3 : 4] for k in range(8)], axis=0)
        small = np.mean([tall[..., k : k + WIDTH + 3 : 4] for k in range(8)], axis=0)
        soft = np.empty((len(small), 3, HEIGHT + 2, WIDTH + 2), np.float32)
        _stretch(small, soft)
        w.rgb[...] = soft[:, :, :HEIGHT, :WIDTH]


_GRAIN = (_mix(np.arange(512 * 512, dtype=np.uint64)) >> np.uint64(40)).astype(np.float32)
_GRAIN = (_GRAIN * np.float32(6 / 2**24) - np.float32(2.5)).reshape(512, 512)  # +-3, half to round


def _paint(t: _Traits, paper: np.ndarray) -> np.ndarray:
    """Back to front: uint8 (n, 218, 178, 3)."""
    canvas = _Canvas(t, paper)
    for painter in (_hair_behind, _neck, _shirt, _clothes, _necklace, _ears, _face, _cheeks,
                    _wrinkles, _beard, _nose, _mouth, _eyes, _brows, _hair_in_front, _earrings,
                    _hat, _glasses, _blur):  # fmt: skip
        painter(canvas)
    for rgb, grain in zip(canvas.rgb, t.grain.ravel(), strict=True):
        top, left = grain // 1024 % (512 - HEIGHT), grain % (512 - WIDTH)
        rgb += _GRAIN[top : top + HEIGHT, left : left + WIDTH]
    np.clip(canvas.rgb, 0, 255, out=canvas.rgb)
    pictures = np.empty((len(canvas.rgb), HEIGHT, WIDTH, 3), np.uint8)
    for channel in range(3):  # three times as fast as one transposed copy
        np.copyto(pictures[..., channel], canvas.rgb[:, channel], casting="unsafe")
    return pictures


# What others call.


def draw(rng_seed: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the faces with these numbers; face i never depends on its neighbours.

    Args:
        rng_seed: Any integer; another seed gives other people.
        indices: Integers (n,), not negative, in any order.

    Returns:
        Images, uint8 (n, 218, 178, 3), RGB in [0, 255]; and attributes, int8 (n, 40) in {-1, 1},
        true of the pictures in the columns `DRAWN_ATTRIBUTES`, -1 in all others.
    """
    indices = np.asarray(indices)
    images = np.empty((len(indices), HEIGHT, WIDTH, 3), np.uint8)
    traits = _traits(rng_seed, indices)
    paper = _paper(min(_CHUNK, len(indices)))
    alike = np.argsort(np.minimum(traits.length, MEDIUM).ravel(), kind="stable")
    for start in range(0, len(indices), _CHUNK):  # hair of one length fits one window
        part = alike[start : start + _CHUNK]
        images[part] = _paint(traits[part], paper)
    return images, _attributes(traits)


def write_celeba(
    folder: Path,
    num_images: int,
    rng_seed: int,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write faces 0 ... num_images - 1 as `torchvision.datasets.CelebA` leaves its own.

    The folder then holds `img_align_celeba.zip` (JPEGs 178 wide and 218 tall, stored),
    `list_attr_celeba.txt`, `list_eval_partition.txt`, and our record `ganray-faces.json`, which
    comes last: without it the set is not whole. A whole set of the same faces is left alone.

    Args:
        folder: Made when missing. Files of the real CelebA in it are never replaced.
        num_images: At most 999,999, for the names have six digits.
        rng_seed: As for `draw`.
        processes: How many draw; None is one per core. The bytes written do not depend on it.
        progress: Called with the number of new faces, every few faces.

    Raises:
        FileExistsError: The folder holds CelebA files that this function did not write.
    """
    if not 1 <= num_images <= 999_999:
        raise ValueError(f"num_images={num_images} is outside 1 ... 999999, six digits of a name")
    record, begun = folder / "ganray-faces.json", folder / "ganray-faces.json.part"
    identity = {"num_images": num_images, "rng_seed": rng_seed, "version": VERSION}
    if record.exists() and json.loads(record.read_text()) == identity:
        return
    folder.mkdir(parents=True, exist_ok=True)
    final = [folder / name for name in (_ATTRIBUTES_FILE, _PARTITION_FILE, _IMAGES_FILE)]
    foreign = [path for path in final if path.exists()]
    if foreign and not record.exists() and not begun.exists():
        raise FileExistsError(f"{foreign[0]} is not ours to replace; name another folder")
    begun.write_text(json.dumps(identity))  # claims the folder until it becomes the record
    for path in (record, *final):
        path.unlink(missing_ok=True)

    parts = [path.with_name(path.name + ".part") for path in final]
    attributes = _write_images(parts[2], num_images, rng_seed, processes, progress)
    lines = [str(num_images), " ".join(ATTRIBUTE_NAMES)]
    lines += [f"{_name(i)} " + " ".join(f"{x:2d}" for x in row) for i, row in enumerate(attributes)]
    parts[0].write_text("\n".join(lines) + "\n")
    train, valid, _ = (
        num_images * images // sum(_SPLIT) for images in itertools.accumulate(_SPLIT)
    )
    split = [f"{_name(i)} {int(i >= train) + int(i >= valid)}\n" for i in range(num_images)]
    parts[1].write_text("".join(split))
    for part, path in zip([*parts, begun], [*final, record], strict=True):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)


def _write_images(
    path: Path, num_images: int, rng_seed: int, processes: int | None, progress
) -> np.ndarray:
    """Fill the zip, in order, from all cores; returns the attributes, int8 (num_images, 40)."""
    processes = processes or os.cpu_count() or 1
    tasks = [
        (rng_seed, start, min(start + _TASK, num_images)) for start in range(0, num_images, _TASK)
    ]
    rows: list[np.ndarray] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, ExitStack() as stack:
        if processes == 1:
            results = map(_jpegs, tasks)
        else:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=spawn)
            results = stack.enter_context(pool).map(_jpegs, tasks)
        for (_, start, _), (jpegs, attributes) in zip(tasks, results, strict=True):
            for index, jpeg in enumerate(jpegs, start):
                entry = zipfile.ZipInfo(f"img_align_celeba/{_name(index)}", (2015, 9, 28, 0, 0, 0))
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                archive.writestr(entry, jpeg)
            rows.append(attributes)
            if progress is not None:
                progress(len(jpegs))
    return np.concatenate(rows)


def _jpegs(task: tuple[int, int, int]) -> tuple[list[bytes], np.ndarray]:
    """The work of one process: draw faces start ... stop - 1 and pack them."""
    rng_seed, start, stop = task
    images, attributes = draw(rng_seed, np.arange(start, stop))
    jpegs = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=86, subsampling="4:2:0")
        jpegs.append(buffer.getvalue())
    return jpegs, attributes


def _name(index: int) -> str:
    """CelebA counts from one."""
    return f"{index + 1:06d}.jpg"
