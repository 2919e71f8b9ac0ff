"""Who a procedural face is: from its number to the traits that ``face_painters`` draws.

In goes `(rng_seed, indices)`; a counter-based hash turns it into dice, one throw after another, and
`roll_traits` turns the throws into `Traits`: every number, flag and colour that tells one face from
another. `attributes_of` reads CelebA's 40 attributes off the same traits, so that they are true of
the picture. Nothing here touches a pixel.
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

BLACK, BROWN, BLOND, GRAY, RED = range(5)  # of hair: Traits.colour, the rows of HAIRS
BALD, SHORT, MEDIUM, LONG = range(4)  # Traits.length
SHAVEN, STUBBLE, MUSTACHE, GOATEE, BEARD = range(5)  # Traits.facial
TEE, V_NECK, SUIT = range(3)  # Traits.outfit
CAP, BEANIE, BRIM = range(3)  # Traits.hat_kind


def mix(bits: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: uint64 -> uint64, a bijection in which every bit stirs all."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class Dice:
    """Throw k of face i depends on (rng_seed, i, k) only; k counts the throws made so far."""

    STEP = 0x9E3779B97F4A7C15
    """By which splitmix64 counts."""

    def __init__(self, rng_seed: int, indices: np.ndarray) -> None:
        seed = mix(np.array([rng_seed % 2**64], np.uint64))
        self._faces = mix(seed + np.asarray(indices).astype(np.uint64) * np.uint64(self.STEP))
        self._throws = 0

    def __call__(self, low=0.0, high=1.0) -> np.ndarray:
        """Uniform float32 (n, 1, 1) in [low, high); the bounds may differ per face."""
        self._throws += 1
        bits = mix(self._faces + np.uint64(self._throws * self.STEP % 2**64))
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


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A colour as factors or an offset for colours: float32 (3, 1, 1)."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _colour(palette: list[tuple[int, int, int]], choice: np.ndarray) -> np.ndarray:
    return np.asarray(palette, np.float32)[choice.ravel(), :, None, None]


class Traits:
    """Structure of arrays, one row per face: numbers and flags (n, 1, 1), colours (n, 3, 1, 1).

    `traits[who]` is the traits of some faces; a painter asks for few, so each is cut when asked.
    """

    def __init__(self, whole: "Traits | None" = None, who=None) -> None:
        self._whole, self._who = whole, who

    def __getitem__(self, who) -> "Traits":
        return Traits(self, who)

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


def roll_traits(rng_seed: int, indices: np.ndarray) -> Traits:
    """All that is random about the faces; the order of the throws is part of `faces.VERSION`."""
    t, dice = Traits(), Dice(rng_seed, indices)
    _roll_pose(t, dice)
    _roll_person(t, dice)
    _roll_hair(t, dice)
    _roll_features(t, dice)
    _roll_dress(t, dice)
    return t


def _roll_pose(t: Traits, dice: Dice) -> None:
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


def _roll_person(t: Traits, dice: Dice) -> None:
    """Sex, age, skin and the outline of the head."""
    t.male, t.old = dice.chance(0.44), dice.chance(0.25)
    t.pale = dice.chance(0.08)
    t.melanin = np.where(t.pale, 0, dice(0.08, 1) * dice(0.45, 1))
    shade = t.melanin * (len(SKINS) - 1)
    below = np.minimum(shade.astype(np.intp), len(SKINS) - 2)
    light, dark = _colour(SKINS, below), _colour(SKINS, below + 1)
    t.skin = light + (dark - light) * (shade - below)[:, None]
    t.skin += np.where(t.pale[:, None], rgb(0, 3, 6), rgb(5, -3, -6) * dice(-1, 1)[:, None])
    t.skin_dark = t.skin * rgb(0.66, 0.54, 0.50)
    t.oval = dice.chance(0.3)
    t.chubby = dice.chance(0.12) & ~t.oval
    t.double_chin = t.chubby & dice.chance(0.5)
    t.face_w = 44.5 + 1.5 * t.male + 5.0 * t.chubby - 2.5 * t.oval + dice(-1, 1)
    t.chin = 64 + 4.0 * t.male + 5.0 * t.oval + dice(-2, 2)
    t.square = np.where(t.oval, 0, 0.05 + 0.18 * t.male + 0.12 * t.chubby)
    t.taper = 0.22 + 0.08 * t.oval - 0.10 * t.male - 0.14 * t.chubby + dice(-0.05, 0.05)
    t.neck_w = 22 + 5.0 * t.male + 4.0 * t.chubby + dice(-1, 1)
    t.head = -4 * t.yaw


def _roll_hair(t: Traits, dice: Dice) -> None:
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


def _roll_features(t: Traits, dice: Dice) -> None:
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
    natural = t.skin * rgb(0.86, 0.62, 0.60) + rgb(8, 0, 4)
    t.lip_colour = np.where(t.lipstick[:, None], dice.colour(LIPSTICKS), natural)
    t.shadow_colour = dice.colour(SHADOWS)
    t.rosy = dice.chance(0.05 + 0.12 * ~t.male)
    t.cheekbones = dice.chance(0.25 + 0.35 * t.smile) & ~t.chubby


def _roll_dress(t: Traits, dice: Dice) -> None:
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


def attributes_of(t: Traits) -> np.ndarray:
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
