"""Images to send, drawn here: a load test needs no data and sends no file twice by accident."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 384, 256
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 70),
    "blue": (38, 84, 200),
    "yellow": (245, 200, 40),
    "purple": (130, 60, 170),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "bar")
QUERIES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


class Scene:
    """An image of some coloured shapes.

    Attributes:
        jpeg: The encoded file, different for every seed.
        boxes: x_min, y_min, x_max, y_max of each shape, pixels.
    """

    def __init__(self, seed: int, shapes: int = 5) -> None:
        draw_from = random.Random(seed)
        ground = tuple(draw_from.randrange(180, 256) for _ in range(3))
        image = Image.new("RGB", (WIDTH, HEIGHT), ground)
        draw = ImageDraw.Draw(image)
        self.boxes = [self._draw(draw, draw_from) for _ in range(shapes)]
        for _ in range(16):  # a few odd pixels: equal layouts still are different files
            spot = draw_from.randrange(WIDTH), draw_from.randrange(HEIGHT)
            image.putpixel(spot, tuple(draw_from.randrange(256) for _ in range(3)))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        self.jpeg = buffer.getvalue()

    def centre(self, index: int) -> tuple[float, float]:
        """Where to click on a shape, x and y."""
        x_min, y_min, x_max, y_max = self.boxes[index % len(self.boxes)]
        return (x_min + x_max) / 2, (y_min + y_max) / 2

    @staticmethod
    def _draw(draw: ImageDraw.ImageDraw, draw_from: random.Random) -> tuple[float, float, float, float]:
        side = draw_from.randrange(40, 100)
        height = side // 3 if (shape := draw_from.choice(SHAPES)) == "bar" else side
        left, top = draw_from.randrange(WIDTH - side), draw_from.randrange(HEIGHT - height)
        box = (left, top, left + side, top + height)
        colour = COLOURS[draw_from.choice(list(COLOURS))]
        if shape == "circle":
            draw.ellipse(box, colour)
        else:
            draw.rectangle(box, colour)
        return box
