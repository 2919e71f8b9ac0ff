"""Traits of procedural faces: every number, flag and color that ``painters`` renders.

`draw_traits` draws them from a counter-based random stream of `(rng_seed, instreams)`.
`attributes_of` derives CelebA's 40 attributes from the same traits, so that they fit the image.
"""

import itertools

import numpy as np

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
"""Attributes that the images show; the others are -1 in every row."""

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

BLACK, BROWN, BLOND, GRAY, RED = range(5)  # Traits.hair_color, the rows of HAIRS
BALD, SHORT, MEDIUM, LONG = range(4)  # Traits.length
SHAVEN, STUBBLE, MUSTACHE, GOATEE, BEARD = range(5)  # Traits.facial
TEE, V_NECK, SUIT = range(3)  # Traits.outfit
CAP, BEANIE, BRIM = range(3)  # Traits.hat_kind


def mix(bits: np.ndarray) -> np.ndarray:
    """Return splitmix64's finalizer (Steele et al. 2014), a bijection of uint64."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class RandomStream:
    """Random numbers per face: draw k of face i depends on (rng_seed, i, k) only."""

    STEP = 0x9E3779B97F4A7C15
    """Increment of splitmix64's counter."""

    def __init__(self, rng_seed: int, instreams: np.ndarray) -> None:
        seed = mix(np.array([rng_seed % 2**64], np.uint64))
        self._faces = mix(seed + np.asarray(instreams).astype(np.uint64) * np.uint64(self.STEP))
        self._draws = 0

    def __call__(self, low=0.0, high=1.0) -> np.ndarray:
        """Draw uniform float32 (n, 1, 1) in [low, high); the bounds may differ per face."""
        self._draws += 1
        bits = mix(self._faces + np.uint64(self._draws * self.STEP % 2**64))
        unit = (bits >> np.uint64(40)).astype(np.float32).reshape(-1, 1, 1) * np.float32(2**-24)
        return low + (high - low) * unit

    def chance(self, probability) -> np.ndarray:
        """Draw bool (n, 1, 1), True with this probability."""
        return self() < probability

    def choice(self, *weights) -> np.ndarray:
        """Draw intp (n, 1, 1) in [0, len(weights)); weights may differ per face."""
        value = self() * sum(weights)
        edges = np.stack([edge + 0 * value for edge in itertools.accumulate(weights[:-1])])
        return (value >= edges).sum(axis=0)

    def color(self, palette: list[tuple[int, int, int]]) -> np.ndarray:
        """Draw a color of the palette, a little lighter or darker: float32 (n, 3, 1, 1)."""
        return _color(palette, self.choice(*[1.0] * len(palette))) * self(0.88, 1.08)[:, None]


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """Return a color, or factors or an offset for colors: float32 (3, 1, 1)."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _color(palette: list[tuple[int, int, int]], choice: np.ndarray) -> np.ndarray:
    return np.asarray(palette, np.float32)[choice.ravel(), :, None, None]


class Traits:
    """Arrays with a row per face: numbers and flags (n, 1, 1), colors (n, 3, 1, 1).

    `traits[rows]` are the traits of some faces. A painter uses a few of a hundred traits, so each
    is indexed when it is first used.
    """

    def __init__(self, base: "Traits | None" = None, rows=None) -> None:
        self._base, self._rows = base, rows

    def __getitem__(self, rows) -> "Traits":
        return Traits(self, rows)

    def __setattr__(self, name: str, values) -> None:
        if getattr(values, "dtype", None) == np.float64:  # of a flag times a Python number
            values = values.astype(np.float32)
        super().__setattr__(name, values)

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_"):
            raise AttributeError(name)
        values = getattr(self._base, name)[self._rows]
        setattr(self, name, values)
        return values


def draw_traits(rng_seed: int, instreams: np.ndarray) -> Traits:
    """Draw the traits of faces. The order of the draws is part of `faces.VERSION`."""
    t, stream = Traits(), RandomStream(rng_seed, instreams)
    _draw_pose(t, stream)
    _draw_person(t, stream)
    _draw_hair(t, stream)
    _draw_features(t, stream)
    _draw_dress(t, stream)
    return t


def _draw_pose(t: Traits, stream: RandomStream) -> None:
    """Draw the pose of the head, the light and the background."""
    half = (stream() + stream() - 1) * 0.055  # tan(angle / 2): a rotation without sin and cos
    t.cos, t.sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    t.zoom = stream(0.94, 1.06)
    t.eye_x, t.eye_y = 88.5 + stream(-2, 2), 111.5 + stream(-2, 2)
    t.yaw = stream() + stream() - 1  # > 0: the nose points to the right of the image
    t.light_u, t.light_v = stream(-0.8, 0.8), stream(-0.6, 0.0)
    t.blurry = stream.chance(0.05)
    t.grain = stream(0, 2**20).astype(np.intp)
    light, vivid = stream(50, 205), 70 * stream() * stream(0.2, 1)
    t.wall = np.stack([light + vivid * stream(-1, 1) for _ in range(3)], 1)
    far, vivid = light * stream(0.5, 1.2), 60 * stream()
    t.wall_far = np.stack([far + vivid * stream(-1, 1) for _ in range(3)], 1)
    t.wall_edge_u, t.wall_edge_v = stream(-1, 1), stream(-0.5, 0.5)
    t.wall_edge = stream(-70, 70)
    t.wall_sharp = stream(4, 90)
    spots = [[stream(0, 178), stream(0, 218), stream(14, 50), stream(-0.3, 0.35)] for _ in range(5)]
    t.spots = np.stack([np.stack(spot, 1) for spot in spots], 1)  # x, y, radius, strength


def _draw_person(t: Traits, stream: RandomStream) -> None:
    """Draw sex, age, skin and the outline of the head."""
    t.male, t.old = stream.chance(0.44), stream.chance(0.25)
    t.pale = stream.chance(0.08)
    t.melanin = np.where(t.pale, 0, stream(0.08, 1) * stream(0.45, 1))
    shade = t.melanin * (len(SKINS) - 1)
    below = np.minimum(shade.astype(np.intp), len(SKINS) - 2)
    light, dark = _color(SKINS, below), _color(SKINS, below + 1)
    t.skin = light + (dark - light) * (shade - below)[:, None]
    t.skin += np.where(t.pale[:, None], rgb(0, 3, 6), rgb(5, -3, -6) * stream(-1, 1)[:, None])
    t.skin_dark = t.skin * rgb(0.66, 0.54, 0.50)
    t.oval = stream.chance(0.3)
    t.chubby = stream.chance(0.12) & ~t.oval
    t.double_chin = t.chubby & stream.chance(0.5)
    t.face_w = 44.5 + 1.5 * t.male + 5.0 * t.chubby - 2.5 * t.oval + stream(-1, 1)
    t.chin = 64 + 4.0 * t.male + 5.0 * t.oval + stream(-2, 2)
    t.square = np.where(t.oval, 0, 0.05 + 0.18 * t.male + 0.12 * t.chubby)
    t.taper = 0.22 + 0.08 * t.oval - 0.10 * t.male - 0.14 * t.chubby + stream(-0.05, 0.05)
    t.neck_w = 22 + 5.0 * t.male + 4.0 * t.chubby + stream(-1, 1)
    t.head = -4 * t.yaw


def _draw_hair(t: Traits, stream: RandomStream) -> None:
    """Draw hair, hat and beard."""
    dark, fair, old = 1.0 * (t.melanin > 0.42), 1.0 * (t.melanin <= 0.42), 1.0 * t.old
    blond, brown = 0.01 + 0.35 * fair, 0.3 + 0.1 * fair
    t.hair_color = stream.choice(0.2 + dark, brown, blond, 0.02 + 0.9 * old, 0.1 * fair)
    hair = _color(HAIRS, t.hair_color) * stream(0.85, 1.1)[:, None]
    t.hair_dark, t.hair_light = hair * 0.62, hair * 1.18 + 8
    male, female = 1.0 * t.male, 1.0 * ~t.male
    bald, short = male * (0.06 + 0.12 * old), 0.8 * male + 0.13 * female
    t.length = stream.choice(bald, short, 0.08 * male + 0.35 * female, 0.03 * male + 0.52 * female)
    t.hat = stream.chance(0.07)
    t.hat_kind, t.hat_color = stream.choice(1, 1, 1), stream.color(FABRICS)
    t.hat_turn = stream(-1, 1)
    t.haired = (t.length > SHORT) | ((t.length == SHORT) & ~t.hat)  # a hat hides short hair
    t.wavy = t.haired & stream.chance(0.42)
    t.bangs = t.haired & ~t.hat & stream.chance(0.14 + 0.14 * female)
    t.receding = (t.length == SHORT) & t.haired & ~t.bangs & stream.chance(0.02 + 0.3 * old * male)
    t.hair_end = stream(-12, 4) + 46 * (t.length == MEDIUM) + 96 * (t.length == LONG)
    t.hair_end += stream(-8, 16) * (t.length == MEDIUM)
    puff = stream(2, 9) + (t.length > SHORT) * 2 + t.wavy * stream(2, 7)
    t.puff = np.where(t.hat, 4, np.where(t.receding, 3, puff))
    t.puff_top = np.where(t.hat, 0, np.minimum(t.puff * stream(0.7, 1.6), 20))
    t.flare = np.where(t.length > SHORT, stream(-0.16, 0.12) + t.wavy * stream(0, 0.1), -0.6)
    t.curl, t.curl_size = t.wavy * stream(1.4, 2.6), stream(20, 36)
    t.strands, t.phase = stream(7, 11), stream()
    t.hairline = np.where(t.bangs, stream(18, 23), np.where(t.receding, 54, stream(36, 42)))
    peak = np.where(t.length > SHORT, stream(-0.1, 0.8), stream(-0.35, 0.2))
    t.peak = np.where(t.bangs, -0.55, np.where(t.receding, -0.22, peak))
    t.sweep = np.where(t.bangs | t.receding, stream(-0.1, 0.1), stream(-0.45, 0.45))
    t.jag = np.where(t.bangs, stream(0.6, 1.6), 0.5)
    t.temple = np.where(t.length > SHORT, stream(6, 11), stream(3, 6))
    t.part_open = stream(0, 0.5)
    t.facial = t.male * stream.choice(0.5, 0.17, 0.08, 0.11, 0.16)
    t.double_chin &= t.facial <= MUSTACHE  # a beard would hide it
    t.mustache = (t.facial == MUSTACHE) | (t.facial == BEARD)
    t.mustache |= (t.facial == GOATEE) & stream.chance(0.6)
    t.sideburns = t.male & (t.length == SHORT) & t.haired & stream.chance(0.25)


def _draw_features(t: Traits, stream: RandomStream) -> None:
    """Draw eyes, brows, nose, mouth, lips and cheeks."""
    fair = 1.0 * (t.melanin <= 0.45)
    t.iris = _color(IRISES, stream.choice(1, 1, 0.7 * fair, fair, 0.7 * fair, 1.7 - fair))
    t.narrow = stream.chance(0.13)
    t.eye_w = stream(9.2, 10.8)
    t.eye_h = np.where(t.narrow, stream(2.0, 2.6), stream(4.2, 6.0))
    t.eye_slant, t.gaze = stream(-0.02, 0.14), stream(-1.5, 1.5)
    t.bags = stream.chance(0.12 + 0.2 * t.old)
    t.bushy = stream.chance(0.08 + 0.2 * t.male)
    t.arched = stream.chance(0.42 - 0.3 * t.male) & ~t.bushy
    t.brow_h = np.where(t.bushy, stream(3.3, 4.1), stream(1.5, 2.3) + 0.4 * t.male)
    t.brow_arch = np.where(t.arched, stream(5.5, 8), stream(1, 3))
    t.brow_y, t.brow_tilt = stream(-14.5, -12), stream(-3, 0.5)
    t.pointy = stream.chance(0.27)
    t.big_nose = stream.chance(0.16 + 0.12 * t.male) & ~t.pointy
    t.nose_w = 8.2 + 4.3 * t.big_nose - 2.2 * t.pointy + stream(-0.6, 0.6)
    t.nose_v = 25 + 2.5 * t.big_nose + 2 * t.pointy + stream(-1, 1)
    t.smile = stream.chance(0.5)
    t.open = stream.chance(0.2 + 0.45 * t.smile)
    t.gap = np.where(t.open, np.where(t.smile, stream(5, 9), stream(4, 8)), 1.2)
    t.curve = np.where(t.smile, stream(5.5, 8.5), stream(-2, 1))
    t.mouth_w = np.where(t.smile, stream(18, 22), stream(13, 16))
    t.big_lips = stream.chance(0.24)
    t.lip = np.where(t.big_lips, stream(5.2, 6.5), stream(2.4, 3.6))
    t.makeup = ~t.male & stream.chance(0.42)
    t.lipstick = t.makeup | (~t.male & stream.chance(0.3))
    natural = t.skin * rgb(0.86, 0.62, 0.60) + rgb(8, 0, 4)
    t.lip_color = np.where(t.lipstick[:, None], stream.color(LIPSTICKS), natural)
    t.shadow_color = stream.color(SHADOWS)
    t.rosy = stream.chance(0.05 + 0.12 * ~t.male)
    t.cheekbones = stream.chance(0.25 + 0.35 * t.smile) & ~t.chubby


def _draw_dress(t: Traits, stream: RandomStream) -> None:
    """Draw glasses, jewelry and clothes."""
    t.glasses = stream.chance(0.09 + 0.12 * t.old)
    t.sunglasses = t.glasses & stream.chance(0.2)
    t.frame = stream.color(FRAMES)
    t.lens_w, t.lens_h = stream(13, 15.5), stream(9.5, 13)
    t.lens_round, t.frame_h = stream(0.25, 1), stream(1.1, 2.0)
    t.earrings = stream.chance(0.04 + 0.38 * ~t.male)
    t.hoop, t.metal = stream.chance(0.4), stream.color(METALS)
    t.outfit = stream.choice(0.5 + 0.2 * t.male, 0.5, 0.08 + 0.5 * t.male)
    t.necktie = (t.outfit == SUIT) & t.male & stream.chance(0.75)
    t.necklace = (t.outfit != SUIT) & stream.chance(0.03 + 0.3 * ~t.male)
    t.beads = stream.chance(0.4)
    t.cloth, t.tie = stream.color(FABRICS), stream.color(FABRICS)
    t.cloth = np.where((t.outfit == SUIT)[:, None], stream.color(SUITS), t.cloth)
    t.striped, t.stripe = (t.outfit == TEE) & stream.chance(0.3), stream.color(FABRICS)
    t.vee = np.where(t.outfit == SUIT, 40, stream(18, 30))
    t.shoulder, t.slope = stream(80, 86) - 2.0 * t.male, stream(0.18, 0.34) - 0.06 * t.male


def attributes_of(t: Traits) -> np.ndarray:
    """Return CelebA's attributes of faces, int8 (n, 40): 1 for yes and -1 for no."""
    flags = {
        "5_o_Clock_Shadow": t.facial == STUBBLE,
        "Arched_Eyebrows": t.arched,
        "Bags_Under_Eyes": t.bags & ~t.sunglasses,
        "Bald": (t.length == BALD) & ~t.hat,
        "Bangs": t.bangs,
        "Big_Lips": t.big_lips,
        "Big_Nose": t.big_nose,
        "Black_Hair": t.haired & (t.hair_color == BLACK),
        "Blond_Hair": t.haired & (t.hair_color == BLOND),
        "Blurry": t.blurry,
        "Brown_Hair": t.haired & (t.hair_color == BROWN),
        "Bushy_Eyebrows": t.bushy,
        "Chubby": t.chubby,
        "Double_Chin": t.double_chin,
        "Eyeglasses": t.glasses,
        "Goatee": t.facial == GOATEE,
        "Gray_Hair": t.haired & (t.hair_color == GRAY),
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
    for name, flag in flags.items():
        rows[flag.ravel(), ATTRIBUTE_NAMES.index(name)] = 1
    return rows
