"""Patches as one picture: real ones beside generated ones."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QColor, QImage, QPainter, QPaintEvent
from qtpy.QtWidgets import QSizePolicy, QWidget

GAP = 1
"""Pixels between two patches."""

TILE = 20
"""Wanted size of a patch on the screen."""


def flat(patches: np.ndarray) -> np.ndarray:
    """Patches (n, C, *patch) as tiles (n, h, w, 1 or 3); of 3D ones the middle slice."""
    if patches.ndim == 5:
        patches = patches[:, :, patches.shape[2] // 2]
    channels = 3 if patches.shape[1] == 3 else 1
    return np.moveaxis(patches[:, :channels], 1, -1)


def mosaic(tiles: np.ndarray, columns: int, rows: int, background: float = 0.5) -> np.ndarray:
    """One uint8 image (height, width, 1 or 3) of at most ``columns * rows`` tiles in [0, 1]."""
    _, h, w, channels = tiles.shape
    picture = np.full(
        (rows * (h + GAP) - GAP, columns * (w + GAP) - GAP, channels), background, np.float32
    )
    for index, tile in enumerate(tiles[: columns * rows]):
        top, left = (index // columns) * (h + GAP), (index % columns) * (w + GAP)
        picture[top : top + h, left : left + w] = tile
    return (np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)


class PatchGallery(QWidget):
    """A titled mosaic of patches that fills the room it has."""

    def __init__(self, title: str, empty: str, height: int = 84) -> None:
        super().__init__()
        self._empty = empty
        self._tiles: np.ndarray | None = None
        self._limits = (0.0, 1.0)
        self._image: QImage | None = None
        self.setMinimumSize(60, height)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.set_title(title)

    def set_title(self, title: str) -> None:
        """Say what the patches are."""
        self._title = title
        self.setToolTip(f"{title}: {self._empty}." if title else "")
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room wanted."""
        return QSize(120, self.minimumHeight())

    @property
    def count(self) -> int:
        """Patches in hand (not all may be visible)."""
        return 0 if self._tiles is None else len(self._tiles)

    def limits(self) -> tuple[float, float]:
        """Values shown black and white."""
        return self._limits

    def show_patches(
        self, patches: np.ndarray | None, limits: tuple[float, float] | None = None
    ) -> None:
        """Show (n, C, *patch) patches; None empties the gallery.

        Parameters
        ----------
        patches : ndarray or None
            Normalised values.
        limits : tuple of float, optional
            Values shown black and white; the range of the patches by default. Give the limits of
            the real patches for the generated ones, so that both can be compared.
        """
        self._tiles = None if patches is None or len(patches) == 0 else flat(patches)
        if self._tiles is not None:
            finite = self._tiles[np.isfinite(self._tiles)]
            low, high = limits or (
                tuple(np.percentile(finite, (0.5, 99.5))) if finite.size else (0.0, 1.0)
            )
            self._limits = (float(low), float(high) if high > low else float(low) + 1.0)
        self._image = None
        self.update()

    def _grid(self, top: int) -> tuple[int, int, float]:
        """Columns, rows and zoom so that tiles of about `TILE` px fill the height."""
        assert self._tiles is not None
        count, h, w, _ = self._tiles.shape
        room_h, room_w = self.height() - top, self.width()
        rows = max(1, round(room_h / max(TILE, h + GAP)))
        while True:  # fewer and larger tiles rather than a row that is not full
            zoom = room_h / (rows * (h + GAP))
            columns = max(1, int(room_w / ((w + GAP) * zoom)))
            if columns * rows <= count or rows == 1:
                return min(columns, count), rows, zoom
            rows -= 1

    def resizeEvent(self, event: object) -> None:  # noqa: N802
        """Lay the patches out anew."""
        self._image = None

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Draw the title and the mosaic."""
        painter = QPainter(self)
        colour = self.palette().text().color()
        painter.setPen(colour)
        font = painter.font()
        font.setPointSizeF(max(6.0, font.pointSizeF() * 0.85))
        painter.setFont(font)
        top = painter.fontMetrics().height() + 2
        painter.drawText(0, 0, self.width(), top, Qt.AlignmentFlag.AlignLeft, self._title)
        if self._tiles is None:
            frame = QColor(colour)
            frame.setAlpha(70)
            painter.setPen(frame)
            painter.drawRect(0, top, self.width() - 1, self.height() - top - 1)
            painter.setPen(colour)
            painter.drawText(
                4, top, self.width() - 8, self.height() - top,
                Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap, self._empty,
            )
            return
        columns, rows, zoom = self._grid(top)
        if self._image is None:
            low, high = self._limits
            picture = mosaic((self._tiles - low) / (high - low), columns, rows)
            self._image = as_qimage(picture)
        painter.drawImage(
            0, top,
            self._image.scaled(
                int(self._image.width() * zoom), int(self._image.height() * zoom),
                Qt.AspectRatioMode.IgnoreAspectRatio, Qt.TransformationMode.FastTransformation,
            ),
        )


def as_qimage(picture: np.ndarray) -> QImage:
    """A QImage of its own memory from (height, width, 1 or 3) uint8."""
    height, width, channels = picture.shape
    data = np.ascontiguousarray(picture)
    kind = QImage.Format.Format_RGB888 if channels == 3 else QImage.Format.Format_Grayscale8
    return QImage(data.tobytes(), width, height, width * channels, kind).copy()
