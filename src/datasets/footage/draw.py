"""Pictures of a scene, drawn straight into YUV 4:2:0 (BT.601, limited range).

Fast because little is drawn: the background is a window sliding over one texture, the objects are
sprites made once and blended into small regions at even places, where chroma samples lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from rushes.datasets.footage import badge
from rushes.datasets.footage.scene import FPS, Scene, Thing
from rushes.datasets.footage.vocabulary import COLORS

Bytes = npt.NDArray[np.uint8]
Planes = tuple[Bytes, Bytes, Bytes]
_SAMPLES = 4
"""Supersampling of sprites along each side."""
_PLAY = 200
"""Pixels by which the texture is larger than the picture, for the background to slide."""
TEXTURES = 12
"""Backgrounds and stains of badges. Were each video's its own, a network would tell the videos it
trains on by them, and learn nothing of the objects."""


def _yuv(rgb: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """BT.601 limited range, `... 3` to `... 3`."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    u = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    v = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    return np.stack([y, u, v], axis=-1).astype(np.float32)


def _outline(shape: str) -> npt.NDArray[np.float64]:
    """Corner points of a shape in a unit square around the origin, x y."""
    if shape == "square":
        return np.array([(-0.44, -0.44), (0.44, -0.44), (0.44, 0.44), (-0.44, 0.44)])
    if shape == "triangle":
        return np.array([(0, -0.5), (0.5, 0.46), (-0.5, 0.46)])
    if shape == "cross":
        a, b = 0.2, 0.5
        top = [(-a, -b), (a, -b), (a, -a), (b, -a)]
        return np.array(
            top + [(b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        )
    count, inner = (10, 0.28) if shape == "star" else (72, 0.48)
    angles = 2 * math.pi * np.arange(count) / count - math.pi / 2
    radius = np.where(np.arange(count) % 2 == 0, 0.5 if shape == "star" else 0.48, inner)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


class Sprite:
    """One object at one width: planes and blending weights (0 to 256), even sizes."""

    def __init__(self, thing: Thing, width: int, seed: int) -> None:
        size = width * _SAMPLES
        mask = np.zeros((size, size), np.uint8)
        points = (_outline(thing.shape) + 0.5) * size
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255, lineType=cv2.LINE_8)
        # A triangle's badge sits low, where the triangle is wide.
        plate_height, plate_width = badge.size_of(thing.scale)
        top = round(width * (0.62 if thing.shape == "triangle" else 0.5)) - plate_height // 2
        left = (width - plate_width) // 2
        plate = np.s_[top : top + plate_height, left : left + plate_width]
        yuv = np.empty((width, width, 3), np.float32)
        yuv[...] = _yuv(np.array(COLORS[thing.color], np.float32))
        yuv[plate] = 128
        yuv[(*plate, 0)] = badge.badge(thing.symbol, seed, thing.scale)
        mask[tuple(slice(p.start * _SAMPLES, p.stop * _SAMPLES) for p in plate)] = 255
        self.alpha, self.alpha_half = _weights(mask, width), _weights(mask, width // 2)
        half = cv2.resize(yuv, (width // 2, width // 2), interpolation=cv2.INTER_AREA)
        self.y = np.round(yuv[..., 0]).astype(np.int16)
        self.u = np.round(half[..., 1]).astype(np.int16)
        self.v = np.round(half[..., 2]).astype(np.int16)
        self.width = width

    def blend(self, planes: Planes, x: float, y: float) -> None:
        """Draw with its centre at (x, y), rounded to an even place."""
        left, top = 2 * round((x - self.width / 2) / 2), 2 * round((y - self.width / 2) / 2)
        _blend(planes[0], left, top, self.y, self.alpha)
        _blend(planes[1], left // 2, top // 2, self.u, self.alpha_half)
        _blend(planes[2], left // 2, top // 2, self.v, self.alpha_half)


def _weights(mask: Bytes, width: int) -> npt.NDArray[np.int16]:
    small = cv2.resize(mask, (width, width), interpolation=cv2.INTER_AREA)
    return np.round(small.astype(np.float32) * (128 / 255)).astype(np.int16)


def _blend(
    plane: Bytes,
    left: int,
    top: int,
    values: npt.NDArray[np.int16],
    weights: npt.NDArray[np.int16],
) -> None:
    """Mix values into a plane; what lies outside of it is cut off."""
    height, width = values.shape
    t, l = max(0, -top), max(0, -left)  # noqa: E741
    b, r = min(height, plane.shape[0] - top), min(width, plane.shape[1] - left)
    if b <= t or r <= l:
        return
    region = plane[top + t : top + b, left + l : left + r]
    old = region.astype(np.int16)
    # Weights reach 128 and differences 255: their product stays below 2**15.
    old += ((values[t:b, l:r] - old) * weights[t:b, l:r]) >> 7
    region[...] = old


class Background:
    """One of a few muted textures that slides past; place, direction and speed are its own."""

    def __init__(self, seed: int, width: int, height: int) -> None:
        rng = np.random.Generator(np.random.PCG64(seed % TEXTURES))
        w, h = width + _PLAY, height + _PLAY
        luma = np.zeros((h, w), np.float32)
        for cell, gain in ((96, 14.0), (32, 10.0), (12, 6.0)):
            coarse = rng.standard_normal((h // cell + 2, w // cell + 2), dtype=np.float32)
            luma += gain * cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
        self.luma = np.clip(luma + rng.uniform(70, 100), 30, 140).astype(np.uint8)
        self.chroma = []
        for _ in range(2):
            coarse = rng.standard_normal((h // 128 + 2, w // 128 + 2), dtype=np.float32)
            smooth = cv2.resize(coarse, (w // 2, h // 2), interpolation=cv2.INTER_CUBIC)
            self.chroma.append(np.clip(128 + 3.5 * smooth, 116, 140).astype(np.uint8))
        rng = np.random.Generator(np.random.PCG64(seed))
        angle = rng.uniform(0, 2 * math.pi)
        speed = rng.uniform(12, 40)
        self.velocity = speed * math.cos(angle), speed * math.sin(angle)
        self.origin = rng.uniform(0, _PLAY), rng.uniform(0, _PLAY)

    def paint(self, planes: Planes, time: float) -> None:
        """Fill the planes with the window of this moment."""
        x, y = (
            2 * round(_mirrored(start + speed * time) / 2)
            for start, speed in zip(self.origin, self.velocity, strict=True)
        )
        height, width = planes[0].shape
        planes[0][...] = self.luma[y : y + height, x : x + width]
        for plane, source in zip(planes[1:], self.chroma, strict=True):
            plane[...] = source[y // 2 : (y + height) // 2, x // 2 : (x + width) // 2]


def _mirrored(position: float) -> float:
    """Fold a straight path into 0.._PLAY, as light between two mirrors."""
    phase = position % (2 * _PLAY)
    return min(phase, 2 * _PLAY - phase)


def planes_of(buffer: Bytes, height: int) -> Planes:
    """The three planes of a packed YUV 4:2:0 picture `H*3/2 W`, as views."""
    width = buffer.shape[1]
    flat = buffer.reshape(-1)
    y, c = height * width, height * width // 4
    half = (height // 2, width // 2)
    return (
        flat[:y].reshape(height, width),
        flat[y : y + c].reshape(half),
        flat[y + c :].reshape(half),
    )


class Painter:
    """Draws the moments of one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.background = Background(scene.texture, scene.width, scene.height)
        self.sprites: dict[tuple[int, int], Sprite] = {}

    def paint(self, planes: Planes, time: float) -> None:
        """Draw the picture at `time` seconds; the object whose event runs lies on top."""
        self.background.paint(planes, time)
        things = list(enumerate(self.scene.things))
        things.sort(key=lambda item: item[1].start <= time < item[1].end)
        for index, thing in things:
            x, y, width = thing.at(time)
            key = index, 2 * round(width / 2)
            if key not in self.sprites:
                self.sprites[key] = Sprite(thing, key[1], (self.scene.texture + index) % TEXTURES)
            self.sprites[key].blend(planes, x, y)


def pictures(scene: Scene) -> Iterator[tuple[int, Bytes]]:
    """Index and packed picture of every frame at the full rate; the buffer is used again."""
    painter = Painter(scene)
    buffer = np.empty((scene.height * 3 // 2, scene.width), np.uint8)
    planes = planes_of(buffer, scene.height)
    for index in range(scene.num_frames):
        painter.paint(planes, index / FPS)
        yield index, buffer
