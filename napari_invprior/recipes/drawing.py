"""A page of simple marks, written as SVG and as PNG: both show the same."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER = "#ffffff"
INK = "#1d2430"
FAMILY = "Aileron, Helvetica, Arial, sans-serif"
MOST_PIXELS = 9600
"""Along the longer side of the picture that is scaled down for smooth edges."""

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Path:
    """Lines (k, 2) on the page, or polygons where ``closed``."""

    lines: Sequence[np.ndarray]
    closed: bool = False
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dash: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dot:
    """A disc with a rim."""

    x: float
    y: float
    radius: float
    fill: str
    rim: float


@dataclass(frozen=True)
class Words:
    """A line of text; ``y`` is its baseline. ``turned`` ones run up and are centred."""

    x: float
    y: float
    text: str
    size: float
    ink: str = INK
    anchor: str = "start"
    halo: float = 0.0
    turned: bool = False


@dataclass(frozen=True)
class Pixels:
    """An image (rows, columns, 3), uint8, in a square."""

    x: float
    y: float
    edge: float
    array: np.ndarray


Item = Path | Dot | Words | Pixels


@dataclass
class Drawing:
    """A page of items, the later ones on top."""

    width: float
    height: float
    title: str
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """A square on the page that shows ``[-extent, extent]^2``; the first coordinate runs down."""

    left: float
    top: float
    edge: float
    extent: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """Places (k, 2) on the page, (x, y), of points (k, 2).

        Examples
        --------
        >>> Panel(100, 50, 80, 4.0).place(np.array([[-4.0, 2.0]])).tolist()
        [[160.0, 50.0]]
        """
        share = (points[:, ::-1] + self.extent) / (2 * self.extent)
        return np.array([self.left, self.top]) + self.edge * share


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Corners (4, 2).

    Examples
    --------
    >>> rectangle(1, 2, 3, 4).tolist()
    [[1, 2], [4, 2], [4, 6], [1, 6]]
    """
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])


def svg(drawing: Drawing) -> bytes:
    """The page as SVG, with text as text.

    Examples
    --------
    >>> page = Drawing(40, 20, "Note", [Words(2, 15, "a < b", 12)])
    >>> svg(page).decode().split(">")[-3]
    'a &lt; b</text'
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    size = {"width": _n(drawing.width), "height": _n(drawing.height)}
    root = ElementTree.Element(f"{{{_SVG}}}svg", {
        **size, "viewBox": f"0 0 {size['width']} {size['height']}", "font-family": FAMILY,
    })
    ElementTree.SubElement(root, f"{{{_SVG}}}title").text = drawing.title
    ElementTree.SubElement(root, f"{{{_SVG}}}rect", {**size, "fill": PAPER})
    for item in drawing.items:
        _add(root, item)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def _add(root: ElementTree.Element, item: Item) -> None:
    if isinstance(item, Words):
        element = ElementTree.SubElement(root, f"{{{_SVG}}}text", _text_attributes(item))
        element.text = item.text
        return
    name, attributes = _shape(item)
    ElementTree.SubElement(root, f"{{{_SVG}}}{name}", attributes)


def _shape(item: Path | Dot | Pixels) -> tuple[str, dict[str, str]]:
    """Name and attributes of an element."""
    if isinstance(item, Pixels):
        file = io.BytesIO()
        Image.fromarray(item.array).save(file, "PNG")
        return "image", {
            "x": _n(item.x), "y": _n(item.y), "width": _n(item.edge), "height": _n(item.edge),
            "preserveAspectRatio": "none", "style": "image-rendering:pixelated",
            f"{{{_XLINK}}}href":
                "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        }
    if isinstance(item, Dot):
        return "circle", {
            "cx": _n(item.x), "cy": _n(item.y), "r": _n(item.radius), "fill": item.fill,
            **({"stroke": PAPER, "stroke-width": _n(item.rim)} if item.rim else {}),
        }
    data = " ".join(_path_data(line, item.closed) for line in item.lines)
    attributes = {"d": data, "fill": item.fill or "none", "stroke-linejoin": "round"}
    if item.stroke:
        attributes |= {"stroke": item.stroke, "stroke-width": _n(item.width)}
    if item.dash:
        attributes["stroke-dasharray"] = " ".join(map(_n, item.dash))
    return "path", attributes


def _path_data(line: np.ndarray, closed: bool) -> str:
    data = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in line.tolist())
    return data + "Z" if closed else data


def _text_attributes(item: Words) -> dict[str, str]:
    attributes = {
        "x": _n(item.x), "y": _n(item.y), "font-size": _n(item.size), "fill": item.ink,
        "text-anchor": item.anchor,
    }
    if item.turned:
        attributes["transform"] = f"rotate(-90 {_n(item.x)} {_n(item.y)})"
    if item.halo:
        attributes |= {
            "stroke": PAPER, "stroke-width": _n(2 * item.halo), "stroke-linejoin": "round",
            "paint-order": "stroke",
        }
    return attributes


def _n(value: float) -> str:
    """A number to a hundredth, without zeros at its end."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def png(drawing: Drawing, edge: int) -> bytes:
    """The page as PNG whose longer side has ``edge`` pixels.

    Examples
    --------
    >>> page = Drawing(40, 20, "Dot", [Dot(20, 10, 8, INK, 0)])
    >>> Image.open(io.BytesIO(png(page, 80))).getpixel((40, 20))
    (29, 36, 48)
    """
    longest = max(drawing.width, drawing.height)
    size = [max(1, round(side * edge / longest)) for side in (drawing.width, drawing.height)]
    finer = max(1, min(3, MOST_PIXELS // edge))  # drawn larger: Pillow's lines have hard edges
    canvas = _Canvas(size[0] * finer, size[1] * finer, edge * finer / longest)
    for item in drawing.items:
        canvas.add(item)
    file = io.BytesIO()
    canvas.image.reduce(finer).save(file, "PNG")
    return file.getvalue()


class _Canvas:
    """Draws items with Pillow."""

    def __init__(self, width: int, height: int, zoom: float) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw, self.zoom = ImageDraw.Draw(self.image), zoom

    def add(self, item: Item) -> None:
        if isinstance(item, Path):
            self._path(item)
        elif isinstance(item, Dot):
            x, y = item.x * self.zoom, item.y * self.zoom
            for radius, ink in ((item.radius + item.rim / 2, PAPER),
                                (item.radius - item.rim / 2, item.fill)):
                r = radius * self.zoom
                self.draw.ellipse((x - r, y - r, x + r, y + r), ink)
        elif isinstance(item, Words):
            self._words(item)
        else:
            low = [round(v * self.zoom) for v in (item.x, item.y)]
            high = [round((v + item.edge) * self.zoom) for v in (item.x, item.y)]
            size = (high[0] - low[0], high[1] - low[1])
            picture = Image.fromarray(item.array).resize(size, Image.Resampling.NEAREST)
            self.image.paste(picture, (low[0], low[1]))

    def _path(self, item: Path) -> None:
        for line in item.lines:
            points = line * self.zoom
            if item.closed:
                points = np.vstack([points, points[:1]])
                if item.fill:
                    self.draw.polygon(_flat(points), item.fill)
            if item.stroke:
                width = max(1, round(item.width * self.zoom))
                parts = _dashes(points, *(self.zoom * d for d in item.dash)) if item.dash else [
                    points
                ]
                for part in parts:
                    self.draw.line(_flat(part), item.stroke, width, "curve")

    def _words(self, item: Words) -> None:
        text = item.text.replace("−", "-")  # Pillow's own font lacks the minus
        font = _font(item.size * self.zoom)
        if item.turned:
            left, top, right, bottom = font.getbbox(text, anchor="ls")
            mask = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
            ImageDraw.Draw(mask).text((-left, -top), text, 255, font, "ls")
            mask = mask.transpose(Image.Transpose.ROTATE_90)
            corner = (round(item.x * self.zoom + top), round(item.y * self.zoom - mask.height / 2))
            self.image.paste(item.ink, corner, mask)
            return
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[item.anchor]
        place = (item.x * self.zoom, item.y * self.zoom)
        self.draw.text(
            place, text, item.ink, font, anchor, stroke_width=item.halo * self.zoom,
            stroke_fill=PAPER,
        )


def _dashes(points: np.ndarray, on: float, off: float) -> list[np.ndarray]:
    """The pieces of a line (k, 2) that are drawn.

    Examples
    --------
    >>> [piece.tolist() for piece in _dashes(np.array([[0.0, 0.0], [5.0, 0.0]]), 2, 2)]
    [[[0.0, 0.0], [2.0, 0.0]], [[4.0, 0.0], [5.0, 0.0]]]
    """
    along = np.r_[0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
    pieces = []
    for start in np.arange(0, along[-1], on + off):
        stop = min(start + on, along[-1])
        inner = along[(along > start) & (along < stop)]
        at = np.r_[start, inner, stop]
        pieces.append(np.stack([np.interp(at, along, axis) for axis in points.T], 1))
    return pieces


def _flat(points: np.ndarray) -> list[float]:
    return points.reshape(-1).tolist()


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def text_length(text: str, size: float) -> float:
    """Length of a line of text in Pillow's own font; others differ a little.

    Examples
    --------
    >>> text_length("ii", 10) < text_length("mm", 10) < 25
    True
    """
    return float(_font(size).getlength(text))
