"""The picture of a study: the images side by side with one contrast, the table below."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.recipes.outcome import Outcome
from napari_invprior.study.table import Column, Row, best, shown_columns

TILE, GAP, LINE, MARGIN = 256, 12, 24, 20
"""Wanted edge of a tile, room between tiles, height of a line, margin; pixels."""
INK, FAINT, WIN, PAPER = "#1d2430", "#8a929e", "#127a4c", "#ffffff"
ACROSS = 4
"""Tiles in a row, at most."""


@dataclass(frozen=True)
class Tile:
    """One image with the words above it."""

    title: str
    caption: str
    plane: np.ndarray


def table_png(outcome: Outcome) -> bytes:
    """PNG of a study's images and table."""
    rows = [Row.from_dict(data) for data in outcome.metrics["table"]]
    tiles = _tiles(outcome.layers, rows)
    blocks = [draw for draw in (_grid(tiles), _table(rows)) if draw is not None]
    width = max(block.width for block in blocks) + 2 * MARGIN
    height = sum(block.height for block in blocks) + MARGIN * (len(blocks) + 1)
    page = Image.new("RGB", (width, height), PAPER)
    top = MARGIN
    for block in blocks:
        page.paste(block, (MARGIN, top))
        top += block.height + MARGIN
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _tiles(layers: Sequence[OutputLayer], rows: Sequence[Row]) -> list[Tile]:
    """The truth first, then the methods in the order of the table."""
    by_name = {f"reconstruction_{row.name}": row for row in rows}
    found = [Tile("Truth", "", _plane(layer)) for layer in layers if layer.role == "truth"]
    for layer in layers:
        row = by_name.get(layer.name)
        if row is not None:
            psnr = row.figures.get("psnr")
            found.append(Tile(row.title, "" if psnr is None else f"{psnr:.2f} dB", _plane(layer)))
    return found


def _plane(layer: OutputLayer) -> np.ndarray:
    """One plane (height, width[, 3]): the first frame and channel, the middle of a volume."""
    array = layer.array
    space = len(layer.geometry.scale)
    while array.ndim > space + int(layer.rgb):
        array = array[0]
    return array[len(array) // 2] if space == 3 else array


def _grid(tiles: Sequence[Tile]) -> Image.Image | None:
    """The tiles with one contrast: from the darkest to the brightest 0.5 % of the first."""
    if not tiles:
        return None
    low, high = np.percentile(tiles[0].plane, (0.5, 99.5))
    height, width = tiles[0].plane.shape[:2]
    zoom = TILE / max(height, width)
    zoom = max(1, round(zoom)) if zoom >= 1 else zoom
    edge_y, edge_x = max(1, round(height * zoom)), max(1, round(width * zoom))
    across = min(ACROSS, len(tiles))
    down = math.ceil(len(tiles) / across)
    step_x, step_y = max(edge_x, 120) + GAP, edge_y + LINE + GAP
    page = Image.new("RGB", (across * step_x - GAP, down * step_y - GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for index, tile in enumerate(tiles):
        x, y = index % across * step_x, index // across * step_y
        grey = np.clip((tile.plane - low) / max(high - low, 1e-12) * 255, 0, 255)
        how = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
        picture = Image.fromarray(np.rint(grey).astype(np.uint8)).resize((edge_x, edge_y), how)
        page.paste(picture.convert("RGB"), (x, y + LINE))
        room = edge_x - draw.textlength(tile.caption, font=_font()) - 8
        draw.text((x, y + 2), _fitted(draw, tile.title, room), INK, font=_font())
        if tile.caption:
            draw.text((x + edge_x, y + 2), tile.caption, FAINT, font=_font(), anchor="ra")
    return page


def _table(rows: Sequence[Row]) -> Image.Image:
    """Titles on the left, figures flush right; the best of each column stands out."""
    columns = shown_columns(rows)
    winners = {column.key: best(rows, column) for column in columns}
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def width(texts: Sequence[str]) -> int:
        return math.ceil(max(probe.textlength(text, font=_font()) for text in texts))

    first = width(["method", *(_named(row) for row in rows)])
    widths = [width([c.label, *(_plain(row.text(c)) for row in rows)]) for c in columns]
    total = first + sum(w + 2 * GAP for w in widths)
    page = Image.new("RGB", (total, LINE * (len(rows) + 1) + 4), PAPER)
    draw = ImageDraw.Draw(page)

    def line(top: int, row: Row | None) -> None:
        draw.text((0, top), "method" if row is None else _named(row), FAINT if row is None else
                  INK, font=_font())
        right = first
        for column, wide in zip(columns, widths, strict=True):
            right += wide + 2 * GAP
            text, ink = _cell(column, row, winners[column.key] is row)
            draw.text((right, top), text, ink, font=_font(), anchor="ra",
                      stroke_width=0.35 if ink == WIN else 0, stroke_fill=ink)

    line(0, None)
    draw.line((0, LINE - 2, total, LINE - 2), FAINT)
    for index, row in enumerate(rows, 1):
        line(LINE * index + 4, row)
    return page


def _cell(column: Column, row: Row | None, wins: bool) -> tuple[str, str]:
    if row is None:
        return column.label, FAINT
    return _plain(row.text(column)), WIN if wins else INK


def _plain(text: str) -> str:
    """Dashes that Pillow's own font has."""
    return text.replace("–", "-")


def _named(row: Row) -> str:
    return row.title if row.status == "done" else f"{row.title} ({row.status})"


def _fitted(draw: ImageDraw.ImageDraw, text: str, room: float) -> str:
    """The text, cut where there is no room for all of it."""
    if draw.textlength(text, font=_font()) <= room:
        return text
    while text and draw.textlength(text + "...", font=_font()) > room:
        text = text[:-1]
    return text + "..."


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(15)
