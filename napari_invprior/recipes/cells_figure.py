"""The figure of a tessellation for papers and talks, as SVG and as PNG.

Both are made from one description of what is drawn where, so they show the same. As in the viewer,
the first coordinate that is shown runs down, and the second one to the right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from napari_invprior.errors import InvalidInput
from napari_invprior.recipes.drawing import (
    INK,
    PAPER,
    Dot,
    Drawing,
    Item,
    Panel,
    Path,
    Pixels,
    Words,
    png,
    rectangle,
    svg,
    text_length,
)
from napari_invprior.recipes.lettering import (
    Box,
    centred,
    depths,
    free_place,
    half_size,
    text_box,
    widest,
)
from napari_invprior.study.tessellation import Tessellation

GOLDEN = math.radians(360 * (3 - math.sqrt(5)) / 2)
"""Hues this far apart leave no large gap, however many there are."""
TONES = ((0.80, 0.11), (0.87, 0.08), (0.74, 0.115), (0.82, 0.075), (0.75, 0.08))
"""Lightness and chroma (OKLCH) that take turns."""
FIRST_HUE = math.radians(245)

FAINT = "#5d6673"
DASH = (6.0, 4.0)
FLOW, TRANSPORT = "flow-matching cells", "Laguerre cells of optimal transport"
UNIT = "standard deviations of the source"

LARGE, SMALL, PAIR = 600, 220, 420
"""Edge of a panel: alone, in space, as one of two."""
MOST_NUMBERED = 150
"""With more atoms, numbers would hide the cells."""
SIDES = (200, 8000)
"""Longer side of a PNG in pixels: at least, at most."""
LEAST = 6.5
"""Size of the smallest number in a cell; smaller ones are left out."""
COARSE = 192
"""Samples along an edge among which a place for a number is looked for."""


def cell_colours(count: int) -> np.ndarray:
    """Colours (count, 3) of cells in [0, 1], sRGB; the k-th does not depend on the count.

    Hues turn by the golden angle, five pairs of a lightness and a chroma of OKLCH take turns.

    Examples
    --------
    >>> cell_colours(2).round(2).tolist() == cell_colours(9)[:2].round(2).tolist()
    True
    """
    number = np.arange(count)
    tone, turn = number % len(TONES), number // len(TONES)
    light, chroma = np.array(TONES)[tone].T
    # neighbouring numbers lie two fifths of the circle apart, and so do the tones' own sequences
    hue = FIRST_HUE + turn * GOLDEN + tone * 2 * (2 * math.pi / len(TONES))
    for _ in range(60):
        rgb = _linear_rgb(light, chroma * np.cos(hue), chroma * np.sin(hue))
        outside = ((rgb < 0) | (rgb > 1)).any(1)
        if not outside.any():
            break
        chroma = np.where(outside, 0.96 * chroma, chroma)
    rgb = rgb.clip(0, 1)
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def cells_svg(tessellation: Tessellation) -> bytes:
    """The figure as SVG, with text as text; see `cells_png`.

    Examples
    --------
    >>> cells_svg(_example()).decode().count("<text") > 20
    True
    """
    return svg(_described(tessellation))


def cells_png(tessellation: Tessellation, edge: int = 1200) -> bytes:
    """The figure as PNG.

    In the plane, flow-matching cells are filled and Laguerre cells are dashed lines on top. Atoms
    are drawn if all of them lie inside the window. Without outlines, images of both kinds of cells
    are put side by side; in space, the slices of the samples next to 0 along each axis.

    Parameters
    ----------
    edge : int
        The longer side in pixels.

    Raises
    ------
    InvalidInput
        If the side is too small to read or too large to hold.

    Examples
    --------
    >>> from io import BytesIO
    >>> from PIL import Image
    >>> max(Image.open(BytesIO(cells_png(_example(), 300))).size)
    300
    """
    if not SIDES[0] <= edge <= SIDES[1]:
        raise InvalidInput(f"a side of {edge} pixels: give {SIDES[0]} to {SIDES[1]}")
    return png(_described(tessellation), edge)


def _described(tessellation: Tessellation) -> Drawing:
    figure = _Figure(tessellation)
    if tessellation.atoms.ndim == 3:
        return figure.slices()
    if tessellation.atoms.ndim != 2:
        raise InvalidInput(
            f"atoms of {tessellation.atoms.ndim} coordinates; cells are drawn for 2 and 3"
        )
    return figure.outlined() if len(tessellation.borders) else figure.images()


class _Figure:
    """Puts the parts of a figure on a page."""

    def __init__(self, tessellation: Tessellation) -> None:
        self.found, self.atoms = tessellation, tessellation.atoms
        self.extent = tessellation.grid.extent
        self.names = self.atoms.index.tolist()
        self.colours = cell_colours(self.atoms.given)[self.names]
        self.label = tessellation.cells.label.cpu().numpy()
        self.undecided = tessellation.cells.undecided.cpu().numpy()
        laguerre = tessellation.laguerre
        self.laguerre = None if laguerre is None else laguerre.cpu().numpy()
        self.places = self.atoms.positions[:, self.atoms.index].T.numpy()
        self.inside = bool((np.abs(self.places) <= self.extent).all())

    def outlined(self) -> Drawing:
        """Polygons in the plane."""
        panel = Panel(84, 72, LARGE, self.extent)
        page = self._page(84 + LARGE + 36, 72 + LARGE + 58, 84)
        page.items += self._legend(panel.left, 40)
        for ring, colour in zip(self.found.borders, self.colours, strict=True):
            if len(ring):
                page.items.append(Path([panel.place(ring)], True, _hex(colour), PAPER, 1.5))
        dashed = [panel.place(line) for line in _edges(self.found.laguerre_borders, self.extent)]
        if dashed:
            page.items.append(Path(dashed, stroke=INK, width=1.1, dash=DASH))
        page.items += _frame(panel, ("coordinate 0", "coordinate 1"), 5)
        dots, taken = self._dots(panel)
        page.items += [*self._numbers(panel, self.label, taken), *dots]
        return page

    def images(self) -> Drawing:
        """Label images in the plane."""
        kinds = self._kinds()
        edge = LARGE if len(kinds) == 1 else PAIR
        page = self._page(84 + len(kinds) * (edge + 84) - 48, 60 + edge + 58, 84)
        for column, (name, image) in enumerate(kinds):
            panel = Panel(84 + column * (edge + 84), 60, edge, self.extent)
            page.items += self._image(panel, image, 5, ("coordinate 0", "coordinate 1"))
            dots, taken = self._dots(panel)
            page.items += [*self._numbers(panel, image, taken), *dots]
            page.items.append(Words(panel.left + edge / 2, 42, name, 15, anchor="middle"))
        return page

    def slices(self) -> Drawing:
        """Slices in space: a column for each axis, a row for each kind of cells."""
        kinds, left, top, step = self._kinds(), 112, 62, SMALL + 72
        page = self._page(left + 3 * step - 38, top + len(kinds) * step - 14, left)
        for row, (name, image) in enumerate(kinds):
            y = top + row * step
            page.items.append(Words(36, y + SMALL / 2, name, 14, anchor="middle", turned=True))
            for axis in range(3):
                panel = Panel(left + axis * step, y, SMALL, self.extent)
                plane = image.take(image.shape[axis] // 2, axis)
                titles = [f"coordinate {other}" for other in range(3) if other != axis]
                page.items += self._image(panel, plane, 2, (titles[0], titles[1]))
                page.items += self._numbers(panel, plane, [])
        for axis in range(3):
            middle = left + axis * step + SMALL / 2
            page.items.append(Words(middle, 44, f"coordinate {axis} = 0", 14, anchor="middle"))
        return page

    def _kinds(self) -> list[tuple[str, np.ndarray]]:
        """Names and label images; a sample that could not be decided is -1."""
        kinds = [(FLOW, np.where(self.undecided, -1, self.label))]
        return kinds if self.laguerre is None else [*kinds, (TRANSPORT, self.laguerre)]

    def _page(self, width: float, bottom: float, left: float) -> Drawing:
        """A page with what the figures say below ``bottom``."""
        lines = _caption(self.found)
        title = f"Cells of {len(self.atoms)} atoms"
        page = Drawing(width, bottom + 19 * len(lines) + 26, title)
        for number, line in enumerate(lines):
            page.items.append(Words(left, bottom + 19 * (number + 1), line, 13, FAINT))
        return page

    def _legend(self, left: float, y: float) -> list[Item]:
        """What the marks mean, in one line."""
        first, second = (_hex(colour) for colour in cell_colours(2))
        items: list[Item] = [
            Path([rectangle(left, y - 11, 15, 14)], True, first),
            Path([rectangle(left + 16.5, y - 11, 15, 14)], True, second),
            Words(left + 40, y, FLOW, 14),
        ]
        left += 40 + text_length(FLOW, 14) + 30
        if len(self.found.laguerre_borders):
            line = np.array([[left, y - 4.5], [left + 36, y - 4.5]])
            items += [Path([line], stroke=INK, width=1.1, dash=DASH)]
            items += [Words(left + 44, y, TRANSPORT, 14)]
            left += 44 + text_length(TRANSPORT, 14) + 30
        if self.inside:
            items += [Dot(left + 5, y - 4.5, 4.2, INK, 0), Words(left + 17, y, "atoms", 14)]
        return items

    def _image(
        self, panel: Panel, plane: np.ndarray, most: int, titles: tuple[str, str]
    ) -> list[Item]:
        """A label image in its frame."""
        table = np.vstack([self.colours, np.ones((1, 3))])  # -1 is the last: paper
        pixels = np.rint(255 * table).astype(np.uint8)[plane]
        image = Pixels(panel.left, panel.top, panel.edge, pixels)
        return [image, *_frame(panel, titles, most)]

    def _dots(self, panel: Panel) -> tuple[list[Item], list[Box]]:
        """Atoms with their numbers, and the room that they take."""
        if not self.inside:
            return [], []
        count = len(self.atoms)
        radius = 4.4 if count <= 30 else max(1.5, 4.4 * math.sqrt(30 / count))
        size = 12 if count <= 30 else 10
        at = panel.place(self.places)
        dots: list[Item] = [
            Dot(x, y, radius, _dark(colour), radius / 3)
            for (x, y), colour in zip(at.tolist(), self.colours, strict=True)
        ]
        taken = [Box(x, y, radius * 1.4, radius * 1.4) for x, y in at.tolist()]
        if count > MOST_NUMBERED:
            return dots, taken
        for name, (x, y), colour in zip(self.names, at.tolist(), self.colours, strict=True):
            box = free_place(x, y, radius + 2, text_box(str(name), size), taken, panel)
            taken.append(box)
            dots.append(centred(str(name), box.x, box.y, size, _dark(colour), halo=1.6))
        return dots, taken

    def _numbers(self, panel: Panel, plane: np.ndarray, taken: Sequence[Box]) -> list[Item]:
        """The number of each cell where the cell is widest, as large as fits."""
        if len(self.atoms) > MOST_NUMBERED:
            return []
        stride = -(-len(plane) // COARSE)
        coarse = plane[stride // 2 :: stride, stride // 2 :: stride].copy()
        spacing = panel.edge / len(plane) * stride
        for box in taken:
            x, y = (box.x - panel.left) / spacing, (box.y - panel.top) / spacing
            wide, high = box.wide / spacing, box.high / spacing
            rows = slice(max(0, math.floor(y - high)), max(0, math.ceil(y + high)))
            coarse[rows, max(0, math.floor(x - wide)) : max(0, math.ceil(x + wide))] = -1
        depth, items = depths(coarse), list[Item]()
        for k, name in enumerate(self.names):
            row, column, room = widest(coarse == k, depth)
            fits = room * spacing / math.hypot(*half_size(str(name), 1))
            if fits >= LEAST:
                x, y = panel.left + column * spacing, panel.top + row * spacing
                ink = _hex(0.5 * self.colours[k])
                items.append(centred(str(name), x, y, min(20, fits), ink))
        return items


def _caption(found: Tessellation) -> list[str]:
    """Costs and agreement in words."""
    figures = found.figures
    flow, best = figures.get("flow_matching_cost"), figures.get("optimal_transport_cost")
    lines, last = [], f"{len(found.atoms)} atoms."
    if flow is not None:
        line = f"Mean squared distance from source point to atom: flow matching {_cost(flow)}"
        lines.append(f"{line}." if best is None else f"{line}, optimal transport {_cost(best)}.")
    if figures.get("agreement") is not None:
        share = 100 * figures["agreement"]
        last = f"Both send {share:.1f} % of the source's mass to the same atom. {last}"
    if found.atoms.ndim == 3:
        last += f" Coordinates in {UNIT}."
    return [*lines, last]


def _cost(value: float) -> str:
    """Four digits, zeros at the end too.

    Examples
    --------
    >>> _cost(0.569), _cost(1234.5678), _cost(8.1)
    ('0.5690', '1235', '8.100')
    """
    if not 1e-3 < value < 1e5:
        return f"{value:.3e}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(value)))}f}"


def _frame(panel: Panel, titles: tuple[str, str], most: int) -> list[Item]:
    """The square, its ticks, and what they count; titles of the axis down and to the right."""
    left, top, right = panel.left, panel.top, panel.left + panel.edge
    bottom, middle = panel.top + panel.edge, panel.edge / 2
    marks, texts = [], list[Item]()
    for tick in _ticks(panel.extent, most):
        x, y = panel.place(np.full((1, 2), tick))[0]
        marks += [np.array([[x, bottom], [x, bottom + 5]]), np.array([[left, y], [left - 5, y]])]
        text = f"{tick:.4g}".replace("-", "−")
        texts.append(Words(x, bottom + 19, text, 12, anchor="middle"))
        texts.append(Words(left - 9, y + 4, text, 12, anchor="end"))
    names = [f"{title} ({UNIT})" if panel.edge > SMALL else title for title in titles]
    return [
        Path(marks, stroke=INK, width=1),
        Path([rectangle(left, top, right - left, bottom - top)], True, stroke=INK, width=1.2),
        *texts,
        Words(left + middle, bottom + 40, names[1], 13, anchor="middle"),
        Words(left - 40, top + middle, names[0], 13, anchor="middle", turned=True),
    ]


def _ticks(extent: float, most: int) -> list[float]:
    """The ends, and round numbers between them, at most ``most`` on each side of 0.

    Examples
    --------
    >>> _ticks(4.0, 2), _ticks(2.7, 5)[:3]
    ([-4.0, -2.0, 0.0, 2.0, 4.0], [-2.7, -2.0, -1.0])
    """
    tens = 10.0 ** math.floor(math.log10(extent / most))
    step = next(s * tens for s in (1, 2, 5, 10) if extent / (s * tens) <= most * (1 + 1e-9))
    inner = step * np.arange(-most, most + 1)
    inner = inner[np.abs(inner) <= extent - 0.6 * step]
    return [-extent, *inner.tolist(), extent]


def _edges(polygons: Iterable[np.ndarray], extent: float) -> list[np.ndarray]:
    """Every edge (2, 2) between two polygons once: dashes drawn twice would fill their gaps.

    Two cells run along their common edge in opposite directions, and one of them is kept.

    Examples
    --------
    >>> left = np.array([[-1.0, -1.0], [0.0, -1.0], [0.0, 1.0], [-1.0, 1.0]])
    >>> [e.tolist() for e in _edges([left, -left], 1.0)]
    [[[0.0, -1.0], [0.0, 1.0]]]
    """
    kept = []
    for ring in polygons:
        for pair in np.stack([ring, np.roll(ring, -1, 0)], 1):
            on_side = np.abs(np.abs(pair) - extent) < 1e-6 * extent
            along_side = bool((on_side.all(0) & (np.sign(pair[0]) == np.sign(pair[1]))).any())
            # a direction along which no edge is likely to lie exactly
            if not along_side and float((pair[1] - pair[0]) @ (0.31830, 0.94799)) > 0:
                kept.append(pair)
    return kept


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * v):02x}" for v in colour.tolist())


def _dark(colour: np.ndarray) -> str:
    """Of the same hue, for marks on the cells."""
    return _hex(0.42 * colour)


def _linear_rgb(light: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """OKLab to linear sRGB (n, 3), with Ottosson's matrices."""
    lms = np.stack([
        light + 0.3963377774 * a + 0.2158037573 * b,
        light - 0.1055613458 * a - 0.0638541728 * b,
        light - 0.0894841775 * a - 1.2914855480 * b,
    ]) ** 3
    matrix = np.array([
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ])
    return (matrix @ lms).T


def _example() -> Tessellation:
    """Two atoms, for the examples above."""
    import torch

    from napari_invprior.jobs import never, run
    from napari_invprior.study.tessellation import TessellationParameters, tessellate
    from napari_invprior.transport.cells.atoms import Atoms
    from napari_invprior.transport.cells.raster import Grid

    atoms = Atoms(torch.tensor([[-1.0, 1.0], [0.0, 0.5]]))
    job = tessellate(
        atoms, Grid(4.0, 64, 2), TessellationParameters(), seed=0, should_stop=never
    )
    found = run(job)
    assert isinstance(found, Tessellation)
    return found
