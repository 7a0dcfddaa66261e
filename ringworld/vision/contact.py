"""A contact sheet: small pictures beside one another, as the PNG of a report."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_GAP = 4  # pixels, white


def png(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def contact_sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """uint8 [h, w, 3] of pictures of one size, row by row; unused places are white. ValueError for no pictures."""
    if not pictures:
        raise ValueError("a contact sheet of no pictures")
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet
