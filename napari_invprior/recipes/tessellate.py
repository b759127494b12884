"""The task ``tessellate``: from atoms to cells of the source, and back to layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.points import load_points
from napari_invprior.jobs import Job, Message, Result, ShouldStop, forward
from napari_invprior.points import PointSet, point_set
from napari_invprior.recipes.device import choose_device
from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.sources import AtomSource
from napari_invprior.study.tessellation import Tessellation, tessellate
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.presets import PRESETS
from napari_invprior.transport.cells.raster import Grid

RESOLUTION = {2: 512, 3: 96}
WORTH_A_GPU = 1 << 28
"""Samples times atoms from which on an accelerator is used unasked."""


def load_atoms(
    recipe: Any, image: Image | None, seeds: PointSet | None, points: Mapping[str, PointSet]
) -> tuple[Atoms, str]:
    """The atoms of a recipe, and the digest of their positions.

    Parameters
    ----------
    image, seeds : Image, PointSet or None
        Where patches are cut out, and around which points.
    points : mapping of str to PointSet
        What ``{"layer": name}`` refers to.

    Raises
    ------
    InvalidInput
        If there are none, or they cannot be used.
    """
    source: AtomSource = recipe.atoms
    weights = recipe.weights
    if source.preset is not None:
        if source.preset not in PRESETS:
            raise InvalidInput(
                f"unknown atoms {source.preset!r}{nearest(source.preset, PRESETS)} (known: "
                f"{', '.join(PRESETS)})"
            )
        rows, own = PRESETS[source.preset].draw(source.count, recipe.seed)
        found, weights = point_set(rows, source.preset), own if weights is None else weights
    elif source.patch_size is not None:
        assert image is not None and seeds is not None
        found = patch_components(image, seeds, source.patch_size, source.components)
    else:
        assert source.points is not None
        found = load_points(source.points, points)
    chosen = None if weights is None else torch.as_tensor(np.asarray(weights, np.float64))
    return Atoms(torch.from_numpy(found.array.T.copy()), chosen), found.digest()


def patch_components(image: Image, seeds: PointSet, edge: int, components: int) -> PointSet:
    """First principal components (n, components) of the patches around points.

    A patch that would leave the image is moved inside. The sign of a component is such that its
    largest loading is positive.

    Raises
    ------
    InvalidInput
        If patches do not fit, or points and image do not have the same axes.
    """
    frame = image.normalised()[0]
    space = frame.shape[1:]
    if seeds.ndim != len(space):
        raise InvalidInput(
            f"the points have {seeds.ndim} coordinates, the image {len(space)} axes; click patches "
            "on the image"
        )
    if edge > min(space):
        raise InvalidInput(f"atoms.patch_size = {edge}: the image is only {min(space)} px wide")
    corners = np.rint(seeds.array - (edge - 1) / 2).astype(int)
    corners = np.clip(corners, 0, np.array(space) - edge)
    patches = np.stack([
        frame[(slice(None), *(slice(c, c + edge) for c in corner))].ravel() for corner in corners
    ]).astype(np.float64)
    if not np.isfinite(patches).all():
        raise InvalidInput("a patch holds NaN or infinite samples; move its point")
    centred = patches - patches.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:components]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    found = np.zeros((len(patches), components))
    found[:, : len(axes)] = centred @ axes.T
    return point_set(found, "components of patches")


def grid_of(recipe: Any, atoms: Atoms) -> Grid:
    """The grid of a recipe; refuses atoms that cannot be shown on one."""
    if atoms.ndim not in RESOLUTION:
        raise InvalidInput(
            f"the atoms have {atoms.ndim} coordinates; cells are shown in 2 or 3 dimensions: give "
            "the atoms' first two or three principal components"
        )
    return Grid(recipe.extent, recipe.resolution or RESOLUTION[atoms.ndim], atoms.ndim)


def cells(inputs: Any, should_stop: ShouldStop) -> Job:
    """Compute the cells; the `Result` is (layers, metrics, `Tessellation`)."""
    recipe, atoms = inputs.recipe, inputs.atoms
    for note in atoms.notes:
        yield Message(note)
    grid = grid_of(recipe, atoms)
    wanted = recipe.device
    if wanted == "auto" and grid.resolution**grid.ndim * len(atoms) < WORTH_A_GPU:
        wanted = "cpu"
    device, message = choose_device(wanted)
    if message is not None:
        yield message
    found: Tessellation = yield from forward(tessellate(
        atoms, grid, recipe.tessellation, seed=recipe.seed, device=device, should_stop=should_stop
    ))
    yield Result((tuple(_layers(found)), found.figures, found))


def _layers(found: Tessellation) -> list[OutputLayer]:
    """Everything that was computed, as layers of the source's plane or space."""
    atoms, grid, ndim = found.atoms, found.grid, found.atoms.ndim
    first = (-grid.extent + grid.spacing / 2,) * ndim
    boxes, plain = Geometry((grid.spacing,) * ndim, first), Geometry.identity(ndim)
    numbers = found.cells.numbered(atoms)
    layers = [OutputLayer("flow_matching_cells", numbers, boxes, kind="labels", unit="own")]
    if found.laguerre is not None:
        other = (atoms.index.numpy() + 1).astype(np.int32)[found.laguerre.numpy()]
        differs = (other != numbers).astype(np.int32)
        layers += [
            OutputLayer("laguerre_cells", other, boxes, kind="labels", unit="own"),
            OutputLayer("differences", differs, boxes, kind="labels", unit="own"),
        ]
    names = {"atom": atoms.index.tolist()}
    kind = "shapes" if ndim == 2 else "surface"
    for name, borders in (
        ("flow_matching_outlines", found.borders), ("laguerre_outlines", found.laguerre_borders)
    ):
        if borders:
            layers.append(OutputLayer(
                name, borders, plain, kind=kind, unit="standard deviation", features=names
            ))
    if found.paths.numel():
        layers.append(OutputLayer("trajectories", _tracks(found), plain, kind="tracks", unit="own"))
    if found.arrows.numel():
        arrows = found.arrows.permute(2, 0, 1).numpy()
        layers.append(OutputLayer("velocity", arrows, plain, kind="vectors", unit="own"))
    rows = atoms.positions.T.numpy().copy()
    layers.append(OutputLayer("atoms", rows, plain, kind="points", unit="own"))
    return layers


def _tracks(found: Tessellation) -> np.ndarray:
    """Rows (track, frame, coordinates) of the paths."""
    frames, _, count = found.paths.shape
    track, frame = np.meshgrid(np.arange(count), np.arange(frames), indexing="ij")
    places = found.paths.permute(2, 0, 1).reshape(count * frames, -1).numpy()
    return np.column_stack([track.ravel(), frame.ravel(), places])
