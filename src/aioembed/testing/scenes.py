"""Drawn scenes and their near-duplicates, for demonstrations and tests without photographs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

__all__ = ["draw_scenes", "near_duplicates"]

_WIDTH, _HEIGHT = 320, 240
_SIZE = (_WIDTH, _HEIGHT)


def draw_scenes() -> dict[str, Image.Image]:
    """Draw a few scenes of distinct layout, by name: RGB, 320 x 240, the same each time."""
    drawings = (_coast, _city, _forest, _mountains, _balloons, _road)
    return {draw.__name__.removeprefix("_"): draw() for draw in drawings}


def near_duplicates(image: Image.Image) -> dict[str, Image.Image]:
    """Return what a picture becomes on its way through the web, by the name of the change.

    Args:
        image: RGB.

    Returns:
        RGB pictures: resized by a half and by one and a half, saved as JPEG of quality 30, 20 %
        darker and brighter, 5 % of each side cropped (about the centre, and off one corner), and
        without colour.
    """
    return {name: change(image) for name, change in _CHANGES.items()}


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def _recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def _cropped(image: Image.Image, left: float, right: float) -> Image.Image:
    """Return the part of both sides between two fractions of their length."""
    w, h = image.size
    return image.crop((round(w * left), round(h * left), round(w * right), round(h * right)))


_CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: _scaled(image, 0.5),
    "larger": lambda image: _scaled(image, 1.5),
    "jpeg": _recompressed,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "cropped": lambda image: _cropped(image, 0.025, 0.975),
    "corner": lambda image: _cropped(image, 0.0, 0.95),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    """Return a picture that fades from one colour to another downwards."""
    mix = np.linspace(0, 1, _HEIGHT)[:, None, None]
    rows = np.asarray(top) * (1 - mix) + np.asarray(bottom) * mix
    return Image.fromarray(np.broadcast_to(rows, (_HEIGHT, _WIDTH, 3)).astype(np.uint8))


def _coast() -> Image.Image:
    image = _gradient((90, 150, 220), (250, 220, 180))
    draw = ImageDraw.Draw(image)
    draw.ellipse((220, 40, 260, 80), fill=(255, 240, 150))
    draw.rectangle((0, 130, _WIDTH, _HEIGHT), fill=(30, 80, 130))
    for row in range(136, _HEIGHT, 9):
        draw.arc((row - 140, row, row + 100, row + 14), 200, 340, fill=(160, 200, 230), width=2)
    draw.polygon([(40, 128), (70, 60), (74, 128)], fill=(245, 245, 240))
    draw.polygon([(30, 130), (100, 130), (88, 144), (42, 144)], fill=(110, 50, 30))
    return image


def _city() -> Image.Image:
    image = _gradient((20, 20, 50), (90, 60, 90))
    draw = ImageDraw.Draw(image)
    roofs = (110, 60, 140, 40, 95, 150, 75, 120)
    for index, roof in enumerate(roofs):
        left = index * 40
        shade = 30 + 9 * (index % 4)
        draw.rectangle((left, roof, left + 37, _HEIGHT), fill=(shade, shade, shade + 15))
        for row in range(roof + 8, _HEIGHT - 8, 16):
            for column in range(left + 5, left + 34, 10):
                draw.rectangle((column, row, column + 5, row + 8), fill=(240, 210, 110))
    return image


def _forest() -> Image.Image:
    image = _gradient((170, 200, 170), (40, 70, 30))
    draw = ImageDraw.Draw(image)
    random = np.random.default_rng(2)
    for left in range(4, _WIDTH, 22):
        lean, width = int(random.integers(-9, 9)), int(random.integers(5, 13))
        top = left + lean
        draw.polygon(
            [(left, _HEIGHT), (top, 0), (top + width, 0), (left + width, _HEIGHT)],
            fill=(60, 40, 25),
        )
    columns, rows = random.integers(0, _WIDTH, 90).tolist(), random.integers(0, 70, 90).tolist()
    for x, y in zip(columns, rows, strict=True):
        draw.ellipse((x - 9, y - 6, x + 9, y + 6), fill=(35, 95, 40))
    return image


def _mountains() -> Image.Image:
    image = _gradient((120, 170, 230), (230, 235, 245))
    draw = ImageDraw.Draw(image)
    draw.polygon([(0, 190), (90, 40), (190, 190)], fill=(95, 95, 115))
    draw.polygon([(63, 85), (90, 40), (120, 85), (100, 75), (85, 92)], fill=(250, 250, 255))
    draw.polygon([(130, 190), (240, 75), (320, 170), (320, 190)], fill=(70, 75, 95))
    draw.polygon([(210, 106), (240, 75), (268, 108), (240, 98)], fill=(250, 250, 255))
    draw.rectangle((0, 190, _WIDTH, _HEIGHT), fill=(80, 130, 60))
    return image


def _balloons() -> Image.Image:
    image = _gradient((130, 190, 240), (200, 225, 245))
    draw = ImageDraw.Draw(image)
    balloons = ((60, 60, 42), (165, 110, 58), (265, 50, 34), (270, 170, 30), (50, 180, 26))
    for x, y, radius in balloons:
        for step, colour in enumerate(((200, 40, 40), (250, 200, 60), (60, 70, 170))):
            half = radius * (3 - step) // 3
            draw.ellipse((x - half, y - radius, x + half, y + radius), fill=colour)
        draw.rectangle((x - 6, y + radius + 6, x + 6, y + radius + 14), fill=(90, 60, 30))
    return image


def _road() -> Image.Image:
    image = _gradient((190, 190, 200), (225, 205, 170))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 90, _WIDTH, _HEIGHT), fill=(190, 150, 90))
    draw.polygon([(150, 90), (170, 90), (310, _HEIGHT), (10, _HEIGHT)], fill=(60, 60, 65))
    for near, far in ((232, 200), (182, 160), (146, 130), (118, 108)):
        wide, narrow = (near - 90) // 18 + 1, (far - 90) // 18 + 1
        draw.polygon(
            [(160 - wide, near), (160 + wide, near), (160 + narrow, far), (160 - narrow, far)],
            fill=(240, 240, 230),
        )
    for distance in (20, 34, 60, 110):
        for x in (160 - distance * 1.4, 160 + distance * 1.4):
            draw.line((x, 90 + distance, x, 90 - distance // 2), fill=(80, 50, 30), width=3)
    return image
