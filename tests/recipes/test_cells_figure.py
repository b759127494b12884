"""The figure of cells: right colours in right places, the same in SVG and in PNG."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import never, run
from napari_invprior.recipes.cells_figure import cell_colours, cells_png, cells_svg
from napari_invprior.study.tessellation import Tessellation, TessellationParameters, tessellate
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.raster import Grid

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def made(positions: torch.Tensor, resolution: int = 64, **options: bool) -> Tessellation:
    grid = Grid(4.0, resolution, len(positions))
    job = tessellate(
        Atoms(positions), grid, TessellationParameters(**options), seed=0, should_stop=never
    )
    return run(job)


@pytest.fixture(scope="module")
def triangle() -> Tessellation:
    angles = torch.tensor([90.0, 210.0, 330.0]).deg2rad()
    corners = torch.stack([angles.cos(), angles.sin()])
    return made(torch.cat([corners, torch.zeros(2, 1)], 1))


@pytest.fixture(scope="module")
def twenty() -> Tessellation:
    return made(torch.randn((2, 20), generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def space() -> Tessellation:
    positions = torch.randn((3, 6), generator=torch.Generator().manual_seed(2))
    return made(positions, 32, outlines=False)


def parsed(data: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(data)


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def box(root: ElementTree.Element, zoom: float) -> list[tuple[float, float, float]]:
    """Left, top and edge of each frame, in pixels: unfilled closed paths of four corners."""
    found = []
    for path in root.iter(f"{SVG}path"):
        numbers = [float(v) for v in re.findall(r"[\d.]+", path.get("d", ""))]
        if path.get("fill") == "none" and path.get("d", "").endswith("Z") and len(numbers) == 8:
            found.append((numbers[0] * zoom, numbers[1] * zoom, (numbers[2] - numbers[0]) * zoom))
    return found


def rgb(colours: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(c) for c in np.rint(255 * colours).astype(int).tolist()]


def commonest(pixels: np.ndarray, frame: tuple[float, float, float], mask: np.ndarray) -> tuple:
    """The commonest colour of the picture where a mask of samples holds."""
    left, top, edge = frame
    rows, columns = np.nonzero(mask)
    y = (top + (rows + 0.5) * edge / len(mask)).astype(int)
    x = (left + (columns + 0.5) * edge / len(mask)).astype(int)
    return Counter(map(tuple, pixels[y, x].tolist())).most_common(1)[0][0]


def lab(colours: np.ndarray) -> np.ndarray:
    """sRGB to OKLab, from Ottosson's forward matrices."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array([
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]).T
    return np.cbrt(lms) @ np.array([
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]).T


def test_colours_differ_are_about_as_light_and_do_not_depend_on_the_count():
    colours = cell_colours(60)
    assert colours.shape == (60, 3)
    assert colours.min() >= 0 and colours.max() <= 1
    assert np.array_equal(cell_colours(200)[:60], colours)
    assert cell_colours(0).shape == (0, 3)
    perceived = lab(colours)
    assert perceived[:, 0].min() > 0.72 and perceived[:, 0].max() < 0.89
    distance = np.linalg.norm(perceived[:, None] - perceived, axis=2) + 9 * np.eye(60)
    assert distance.min() > 0.025  # about 0.02 can be told apart
    assert np.diagonal(distance, 1).min() > 0.1


@pytest.mark.parametrize("name", ["triangle", "twenty"])
def test_every_large_cell_has_its_colour_where_it_lies(name, request):
    found = request.getfixturevalue(name)
    pixels = opened(cells_png(found, 900))
    root = parsed(cells_svg(found))
    zoom = 900 / max(float(root.get("width")), float(root.get("height")))
    (frame,) = box(root, zoom)
    label, colours = found.cells.label.numpy(), rgb(cell_colours(len(found.atoms)))
    large = np.flatnonzero(np.bincount(label.reshape(-1)) > 60)
    assert len(large) >= 4
    for k in large:
        assert commonest(pixels, frame, label == k) == colours[k]
    # beyond the frame there is paper
    assert pixels[0, 0].tolist() == [255] * 3


def test_the_first_coordinate_runs_down_and_the_second_to_the_right():
    found = made(torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    root = parsed(cells_svg(found))
    at = {}
    for circle, text in zip(
        [c for c in root.iter(f"{SVG}circle") if c.get("stroke")],
        [t for t in root.iter(f"{SVG}text") if t.get("paint-order")],
        strict=True,
    ):
        at[text.text] = float(circle.get("cx")), float(circle.get("cy"))
    assert at["0"][0] == at["1"][0] < at["2"][0]
    assert at["0"][1] < at["2"][1] < at["1"][1]
    left, top, edge = box(root, 1)[0]
    assert at["2"] == pytest.approx((left + 0.75 * edge, top + 0.5 * edge))


@pytest.mark.parametrize("name", ["triangle", "twenty"])
def test_svg_has_numbers_axes_legend_and_figures_as_text(name, request):
    found = request.getfixturevalue(name)
    data = cells_svg(found)
    text = words(parsed(data))
    assert {str(k) for k in range(len(found.atoms))} | {"−4", "4"} <= set(text)
    assert sum("standard deviations of the source" in t for t in text) == 2
    assert {"flow-matching cells", "Laguerre cells of optimal transport", "atoms"} <= set(text)
    said = " ".join(text)
    assert f"{100 * found.figures['agreement']:.1f} %" in said
    for key in ("flow_matching_cost", "optimal_transport_cost"):
        assert f"{found.figures[key]:.4f}" in said
    assert cells_svg(found) == data
    assert cells_png(found, 300) == cells_png(found, 300)


def test_every_laguerre_edge_is_dashed_once(triangle):
    root = parsed(cells_svg(triangle))
    legend, dashed = [p for p in root.iter(f"{SVG}path") if p.get("stroke-dasharray")]
    assert legend.get("stroke-dasharray") == dashed.get("stroke-dasharray")
    edges = dashed.get("d").split(" M")
    assert len(edges) == 6  # three around the middle, three to the sides of the window
    assert len(set(edges)) == 6


def test_atoms_beyond_the_window_are_not_drawn_but_numbers_stay(triangle):
    far = made(9 * triangle.atoms.positions)
    root = parsed(cells_svg(far))
    assert not list(root.iter(f"{SVG}circle"))
    assert {"0", "1", "2", "3"} <= set(words(root)) and "atoms" not in words(root)


def test_colours_and_numbers_are_those_of_the_given_atoms():
    positions = torch.tensor([[-1.0, -1.0, 1.0], [0.0, 0.0, 0.5]])  # 0 and 1 are one
    found = made(positions)
    root = parsed(cells_svg(found))
    filled = [p.get("fill") for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "1.5"]
    colours = ["#{:02x}{:02x}{:02x}".format(*c) for c in rgb(cell_colours(3))]
    assert filled == [colours[0], colours[2]]
    assert [t.text for t in root.iter(f"{SVG}text") if t.get("paint-order")] == ["0", "2"]


def test_without_outlines_both_label_images_are_shown(triangle):
    plain = dataclasses.replace(triangle, borders=[], laguerre_borders=[])
    root = parsed(cells_svg(plain))
    images = [embedded(image) for image in root.iter(f"{SVG}image")]
    colours = (np.rint(255 * cell_colours(4))).astype(np.uint8)
    assert np.array_equal(images[0], colours[triangle.cells.label.numpy()])
    assert np.array_equal(images[1], colours[triangle.laguerre.numpy()])
    alone = dataclasses.replace(plain, laguerre=None)
    assert len(list(parsed(cells_svg(alone)).iter(f"{SVG}image"))) == 1
    assert cells_png(alone, 300)


def embedded(image: ElementTree.Element) -> np.ndarray:
    return opened(base64.b64decode(image.get(HREF).split(",")[1]))


def test_undecided_samples_are_paper(triangle):
    undecided = torch.zeros_like(triangle.cells.undecided)
    undecided[3, 5] = True
    cells = dataclasses.replace(triangle.cells, undecided=undecided)
    root = parsed(cells_svg(dataclasses.replace(triangle, cells=cells, borders=[])))
    image = embedded(next(root.iter(f"{SVG}image")))
    assert image[3, 5].tolist() == [255] * 3
    assert (image == 255).all(2).sum() == 1


def test_space_is_shown_in_three_slices_of_both_kinds(space):
    root = parsed(cells_svg(space))
    images = list(root.iter(f"{SVG}image"))
    assert len(images) == 6
    colours = (np.rint(255 * cell_colours(6))).astype(np.uint8)
    for row, label in enumerate((space.cells.label.numpy(), space.laguerre.numpy())):
        for axis in range(3):
            slice_ = label.take(16, axis)
            assert np.array_equal(embedded(images[3 * row + axis]), colours[slice_])
    pixels = opened(cells_png(space))
    frames = box(root, 1200 / max(float(root.get("width")), float(root.get("height"))))
    label = space.cells.label.numpy()[:, 16]
    k = int(np.bincount(label.reshape(-1)).argmax())
    assert commonest(pixels, frames[1], label == k) == tuple(colours[k].tolist())
    assert {"coordinate 0 = 0", "coordinate 1 = 0", "coordinate 2 = 0"} <= set(words(root))
    assert "standard deviations of the source" in " ".join(words(root))


@pytest.mark.parametrize("edge", [200, 777, 1200, 4000])
def test_png_has_the_size(triangle, edge):
    root = parsed(cells_svg(triangle))
    size = Image.open(io.BytesIO(cells_png(triangle, edge))).size
    assert max(size) == edge
    assert size[0] / size[1] == pytest.approx(
        float(root.get("width")) / float(root.get("height")), rel=0.01
    )


@pytest.mark.parametrize("edge", [0, 199, 8001])
def test_sizes_that_cannot_be_drawn_are_refused(triangle, edge):
    with pytest.raises(InvalidInput, match=f"a side of {edge} pixels"):
        cells_png(triangle, edge)


@pytest.mark.parametrize("count", [1, 2])
def test_few_atoms(count):
    found = made(torch.tensor([[0.5, -0.5], [0.0, 1.0]])[:, :count])
    assert "0" in words(parsed(cells_svg(found)))
    assert max(Image.open(io.BytesIO(cells_png(found, 300))).size) == 300


def test_many_atoms_have_no_numbers():
    positions = torch.randn((2, 160), generator=torch.Generator().manual_seed(3)).clamp(-3.9, 3.9)
    root = parsed(cells_svg(made(positions)))
    dots = [c for c in root.iter(f"{SVG}circle") if c.get("stroke")]
    assert len(dots) == 2 * 160  # too many for outlines: in both images
    assert not [t for t in root.iter(f"{SVG}text") if t.get("paint-order")]


def test_numbers_of_dots_and_cells_do_not_overlap(twenty):
    texts = [
        (float(t.get("x")), float(t.get("y")), float(t.get("font-size")), len(t.text))
        for t in parsed(cells_svg(twenty)).iter(f"{SVG}text")
        if t.get("paint-order") or (t.get("fill") not in ("#1d2430", "#5d6673"))
    ]
    assert len(texts) > 20
    for k, (x, y, size, long) in enumerate(texts):
        for x2, y2, size2, long2 in texts[:k]:
            wide = 0.27 * (size * long + size2 * long2)
            middle = abs((y - 0.355 * size) - (y2 - 0.355 * size2))
            assert abs(x - x2) > wide or middle > 0.35 * (size + size2)


def test_areas_of_the_svg_fill_the_window(twenty):
    root = parsed(cells_svg(twenty))
    total = 0.0
    for path in root.iter(f"{SVG}path"):
        if path.get("stroke-width") == "1.5":
            x, y = np.array(re.findall(r"[\d.]+", path.get("d")), float).reshape(-1, 2).T
            total += abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    assert math.sqrt(total) == pytest.approx(box(root, 1)[0][2], rel=1e-3)
