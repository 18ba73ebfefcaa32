"""Pictures from above, drawn with numpy: no GL, no window, the same on every machine."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]


class Canvas:
    """A white picture (height, width, 3), uint8, of a rectangle of the plane; y points up.

    Args:
        size: (width, height) in pixels.
        corner: (x, y) of the lower left corner of the visible area, in metres.
        extent: Width and height of the drawing in metres. It is scaled to fit and centred.
    """

    def __init__(
        self, size: tuple[int, int], corner: tuple[float, float], extent: tuple[float, float]
    ) -> None:
        width, height = size
        scale = max(extent[0] / width, extent[1] / height)  # metres a pixel
        columns = np.arange(width) + 0.5 - width / 2
        rows = np.arange(height) + 0.5 - height / 2
        self.x = corner[0] + extent[0] / 2 + scale * columns  # (width,)
        self.y = (corner[1] + extent[1] / 2 - scale * rows)[:, None]  # (height, 1)
        self.pixels = np.full((height, width, 3), 255, np.uint8)

    def rectangle(self, low: np.ndarray, high: np.ndarray, colour: Colour) -> None:
        """Fill the rectangle between the corners ``low`` (2,) and ``high`` (2,)."""
        inside = (self.x >= low[0]) & (self.x < high[0]) & (self.y >= low[1]) & (self.y < high[1])
        self.pixels[inside] = colour

    def disc(self, centre: np.ndarray, radius: float, colour: Colour) -> None:
        """Fill a disc about ``centre`` (2,)."""
        inside = (self.x - centre[0]) ** 2 + (self.y - centre[1]) ** 2 <= radius**2
        self.pixels[inside] = colour

    def line(self, start: np.ndarray, end: np.ndarray, radius: float, colour: Colour) -> None:
        """Fill all that is within ``radius`` of the segment from ``start`` (2,) to ``end`` (2,)."""
        step = np.asarray(end, float) - start
        length = max(float(step @ step), 1e-12)
        along = ((self.x - start[0]) * step[0] + (self.y - start[1]) * step[1]) / length
        along = np.clip(along, 0, 1)
        gap = (self.x - start[0] - along * step[0]) ** 2 + (
            self.y - start[1] - along * step[1]
        ) ** 2
        self.pixels[gap <= radius**2] = colour
