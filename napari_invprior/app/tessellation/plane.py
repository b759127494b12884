"""The source's plane or space in the viewer: layers that are made once and then follow the atoms.

Names say what the lengths are: standard deviations of the source. Beside an image whose patches are
the atoms, the plane is drawn as high as the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels, Layer, Points, Shapes, Surface, Tracks, Vectors
from napari.utils import DirectLabelColormap

from napari_invprior.app.viewer.layers import META, Snapshot, add_quietly, layer_or_none
from napari_invprior.recipes.cells_figure import cell_colours

UNIT = "[std]"
CELLS, LAGUERRE, DIFFERENCES = (
    f"flow-matching cells {UNIT}", f"Laguerre cells {UNIT}", f"differences {UNIT}"
)
NAMES = {
    "flow_matching_cells": CELLS,
    "laguerre_cells": LAGUERRE,
    "differences": DIFFERENCES,
    "flow_matching_outlines": f"flow-matching outlines {UNIT}",
    "laguerre_outlines": f"Laguerre outlines {UNIT}",
    "trajectories": f"trajectories {UNIT}",
    "velocity": f"velocity {UNIT}",
    "atoms": f"components of the patches {UNIT}",
}
PATH = f"path {UNIT}"
HIDDEN_AT_FIRST = (LAGUERRE, DIFFERENCES)
MOST_COLOURED = 256
"""With more atoms the viewer's own cycle of colours serves."""
GAP = 0.06
"""Room between an image and the plane, as a share of the image's height."""
LINE = 0.006
"""Width of outlines, as a share of the extent."""
ROLE = "tessellation"


@dataclass(frozen=True)
class Placement:
    """Where the source lies in the world: ``world = shift + stretch * source`` on the last axes."""

    stretch: float = 1.0
    shift: tuple[float, ...] = ()
    units: tuple[Any, ...] | None = None

    def of(self, ndim: int, spacing: float = 1.0, first: float = 0.0) -> dict[str, Any]:
        """Keyword arguments of a layer whose sample k lies at ``first + k * spacing``."""
        shift = self.shift or (0.0,) * ndim
        return {
            "scale": (spacing * self.stretch,) * ndim,
            "translate": tuple(s + first * self.stretch for s in shift),
            "units": self.units or ("pixel",) * ndim,
        }


def beside(image: Snapshot, extent: float) -> Placement:
    """The plane to the right of an image, as high as it."""
    geometry, shape = image.geometry, image.data.shape
    space = len(geometry.scale)
    height = abs(geometry.scale[space - 2]) * shape[space - 2]
    width = abs(geometry.scale[space - 1]) * shape[space - 1]
    stretch = height / (2 * extent)
    shift = (
        geometry.translate[space - 2] + height / 2,
        geometry.translate[space - 1] + width + GAP * height + height / 2,
    )
    units = None if geometry.units is None else tuple(geometry.units[-2:])
    return Placement(stretch, shift, units)


class Plane:
    """The layers of one dock.

    Parameters
    ----------
    viewer : ViewerModel
        Where they are.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.placement = Placement()
        self._coloured = 0

    def layer(self, name: str) -> Layer | None:
        """One of them, unless the user removed it."""
        found = layer_or_none(self.viewer, name)
        facts = None if found is None else found.metadata.get(META)
        return found if isinstance(facts, dict) and facts.get("role") == ROLE else None

    def show(
        self, outputs: tuple[Any, ...], count: int, *, patches: bool, coarse: bool
    ) -> None:
        """Show the layers of a run in place of the earlier ones.

        Parameters
        ----------
        count : int
            Atoms that were given.
        patches : bool
            Whether the atoms are patches of an image; else a layer of theirs is there already.
        coarse : bool
            Whether only labels were computed; the other layers would show earlier atoms and hide.
        """
        given = {NAMES[output.name]: output for output in outputs if output.name in NAMES}
        if not patches:
            given.pop(NAMES["atoms"], None)
        for name in (PATH, *NAMES.values()):
            layer = self.layer(name)
            if layer is not None and name not in given:
                self._retire(layer, coarse and name != PATH)
        for name, output in given.items():
            geometry = output.geometry
            if output.kind == "labels":
                self.show_labels(name, output.array, geometry.scale[0], geometry.translate[0],
                                 count)
            else:
                self._replace(name, _made(output, self.placement, name))
                if output.kind == "tracks":  # whole paths, not their beginnings
                    self.viewer.dims.set_current_step(0, int(output.array[:, 1].max()))
            layer = self.layer(name)
            if layer is not None:
                layer.metadata[META] |= dict(output.metadata)
                layer.metadata[META]["role"] = ROLE

    def _retire(self, layer: Layer, coarse: bool) -> None:
        """Hide what will come back in a moment, remove what will not."""
        if coarse:
            layer.metadata[META].setdefault("shown", layer.visible)
            layer.visible = False
        else:
            self.viewer.layers.remove(layer)

    def show_labels(
        self, name: str, array: np.ndarray, spacing: float, first: float, count: int
    ) -> None:
        """Show labels at any resolution in the layer of that name."""
        where = self.placement.of(array.ndim, spacing, first)
        layer = self.layer(name)
        if layer is not None and layer.ndim == array.ndim:
            layer.scale, layer.translate = where["scale"], where["translate"]
            layer.data = array
        else:
            if layer is not None:
                self.viewer.layers.remove(layer)
            layer = Labels(
                array, name=name, metadata={META: {"role": ROLE}}, opacity=0.75,
                visible=name not in HIDDEN_AT_FIRST, **where,
            )
            layer.editable = False
            self._colour(layer, name, count)
            self._add_below(layer)
            return
        if layer.metadata[META].get("count") != count:
            self._colour(layer, name, count)

    def _colour(self, layer: Labels, name: str, count: int) -> None:
        """Each atom in its own colour, the same in every layer and in the figure."""
        layer.metadata[META]["count"] = count
        if name == DIFFERENCES:
            layer.colormap = DirectLabelColormap(
                color_dict={None: "transparent", 0: "transparent", 1: "#e0605a"}
            )
        elif count <= MOST_COLOURED:
            colours = cell_colours(count)
            layer.colormap = DirectLabelColormap(
                color_dict={None: "transparent", 0: "transparent"}
                | {k + 1: (*colour, 1.0) for k, colour in enumerate(colours)}
            )

    def _replace(self, name: str, layer: Layer | None) -> None:
        """Put a layer where the one of that name was, as visible as it was."""
        old = self.layer(name)
        if old is not None and layer is not None:
            layer.visible = old.metadata[META].get("shown", old.visible)
            layer.opacity = old.opacity
            self.viewer.layers.remove(old)
        if layer is not None:
            self._add_below(layer)

    def _add_below(self, layer: Layer) -> None:
        """Add a layer under the points that are dragged, and keep those selected."""
        add_quietly(self.viewer, layer)
        layers = self.viewer.layers
        layer.metadata.setdefault(META, {})["role"] = ROLE
        for points in [p for p in layers if isinstance(p, Points) and p is not layer]:
            layers.move(layers.index(points), len(layers))

    def label_at(self, name: str, position: Any) -> int | None:
        """Label of a layer, visible or not, at a place of the world; None outside."""
        layer = self.layer(name)
        if not isinstance(layer, Labels):
            return None
        # there may be a time axis before those of the plane
        place = layer.world_to_data(np.asarray(position, float)[-layer.ndim :])
        index = tuple(round(float(k)) for k in place)
        inside = all(0 <= k < n for k, n in zip(index, layer.data.shape, strict=True))
        return int(layer.data[index]) if inside else None

    def source_of(self, position: Any, ndim: int) -> np.ndarray:
        """The source point (ndim,) at a place of the world."""
        where = self.placement.of(ndim)
        place = np.asarray(position, float)[-ndim:]
        return (place - np.asarray(where["translate"])) / np.asarray(where["scale"])

    def show_path(self, rows: np.ndarray) -> None:
        """Show the path (T, d) of a point that was clicked."""
        self._replace(PATH, Shapes(
            [rows], shape_type="path", edge_color="#ffffff", face_color="transparent",
            edge_width=0.05, name=PATH, metadata={META: {"role": ROLE}},
            **self.placement.of(rows.shape[1]),
        ))


def _made(output: Any, placement: Placement, name: str) -> Layer | None:
    """A layer of an output that is no label image."""
    options: dict[str, Any] = {"name": name, "metadata": {META: {"role": ROLE}}}
    flow = output.name.startswith("flow")
    if output.kind == "shapes":
        return _lines(output, placement, flow, options)
    if output.kind == "surface":
        return _surface(output, placement, flow, options)
    if output.kind == "tracks":
        ndim = output.array.shape[1] - 2
        where = placement.of(ndim)
        return Tracks(
            output.array, tail_length=int(output.array[:, 1].max()) + 1, tail_width=2,
            colormap="viridis", **options, scale=(1.0, *where["scale"]),
            translate=(0.0, *where["translate"]), units=("pixel", *where["units"]),
            axis_labels=("frame", *(f"axis {k}" for k in range(ndim))),
        )
    if output.kind == "vectors":
        longest = float(np.linalg.norm(output.array[:, 1], axis=1).max()) or 1.0
        ndim = output.array.shape[2]
        step = 2 * float(np.abs(output.array[:, 0]).max()) / max(1, len(output.array) ** (1 / ndim))
        return Vectors(
            output.array, length=step / longest, edge_width=0.03, vector_style="arrow",
            edge_color="#e8e8e8", **options, **placement.of(ndim),
        )
    return Points(
        output.array, size=0.16, face_color="#f2f2f2", border_color="#101418", border_width=0.1,
        **options, **placement.of(output.array.shape[1]),
    )


def _lines(
    output: Any, placement: Placement, flow: bool, options: dict[str, Any]
) -> Layer | None:
    """Outlines as closed paths: nobody fills them, and filling takes long."""
    kept = [(a, p) for a, p in zip(output.features["atom"], output.array, strict=True) if len(p)]
    if not kept:
        return None
    width = LINE * float(max(np.abs(p).max() for _, p in kept))
    return Shapes(
        [np.vstack([p, p[:1]]) for _, p in kept], shape_type="path", face_color="transparent",
        edge_color="#101418" if flow else "#ffffff", edge_width=width,
        features={"atom": [a for a, _ in kept]}, **options, **placement.of(2),
    )


def _surface(
    output: Any, placement: Placement, flow: bool, options: dict[str, Any]
) -> Layer | None:
    """The surfaces of all cells as one mesh, each vertex in the colour of its cell."""
    parts = [(np.asarray(v), np.asarray(f)) for v, f in output.array]
    starts = np.cumsum([0, *(len(v) for v, _ in parts)])
    faces = np.concatenate([f + start for (_, f), start in zip(parts, starts[:-1], strict=True)])
    if len(faces) == 0:
        return None
    shades = cell_colours(max(output.features["atom"]) + 1)[output.features["atom"]]
    colours = np.repeat(shades, [len(v) for v, _ in parts], 0)
    return Surface(
        (np.concatenate([v for v, _ in parts]), faces.astype(int)),
        vertex_colors=np.column_stack([colours, np.ones(len(colours))]), shading="smooth",
        visible=flow, opacity=0.9, **options, **placement.of(3),
    )
