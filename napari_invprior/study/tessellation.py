"""Flow-matching cells and Laguerre cells of the same atoms, and what tells them apart.

All of it is geometry of the source: lengths are standard deviations of N(0, I).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.jobs import Job, Message, Result, ShouldStop, Stage, check_stop, forward
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.faces import cell_surfaces, faces
from napari_invprior.transport.cells.flow_matching import FlowMatching
from napari_invprior.transport.cells.laguerre import MOST_DIMENSIONS, LaguerreCells
from napari_invprior.transport.cells.neighbourhood import touching, unbounded
from napari_invprior.transport.cells.outlines import outlines
from napari_invprior.transport.cells.raster import CellImage, Grid, rasterise
from napari_invprior.transport.cells.separatrices import curves

MOST_OUTLINED = {2: 150, 3: 40}
"""So many atoms at most have outlines; with more, cells are smaller than lines are wide."""
SAMPLE, FEWER, MANY_ATOMS = 1 << 14, 1 << 11, 300
"""Source points that masses and costs are means over, and how many with more atoms than that."""
PATH_TIMES = 41
"""Points of one path that is asked for."""
MARGIN = 0.9
"""Arrows are drawn within this share of the extent."""


class SourceWindow(Parameters):
    """The part of the source that is shown, and how finely."""

    extent: Annotated[float, Field(ge=0.1, le=40)] = parameter(
        4.0, "Half the edge of the part of the source that is shown.", unit="std"
    )
    resolution: Annotated[int, Field(ge=2, le=8192)] | None = parameter(
        None, "Samples along an axis; empty takes 512 in the plane and 96 in space.", unit="px"
    )


class TessellationParameters(Parameters):
    """What is computed beside the cells on the grid."""

    laguerre: bool = parameter(True, "Also compute the Laguerre cells of optimal transport.")
    outlines: bool = parameter(
        True, "Also give smooth outlines: curves in the plane, surfaces in space."
    )
    trajectories: Annotated[int, Field(ge=0, le=2000)] = parameter(
        24, "Random source points whose path to their atom is shown."
    )
    frames: Annotated[int, Field(ge=2, le=500)] = parameter(
        25, "Times of a path, from 0 to 1.", advanced=True
    )
    arrows: Annotated[int, Field(ge=0, le=64)] = parameter(
        0, "Arrows along an axis that show the velocity at one time."
    )
    time: Annotated[float, Field(ge=0, le=0.999)] = parameter(
        0.5, "Time of the velocity that is shown."
    )
    tolerance: Annotated[float, Field(ge=1e-10, le=1e-2)] = parameter(
        1e-6, "Relative error of a step of the integrator.", advanced=True
    )


@dataclass(frozen=True)
class Tessellation:
    """Cells of both kinds, and what was asked for beside them.

    Attributes
    ----------
    atoms, grid : Atoms, Grid
        What was divided, and where.
    cells : CellImage
        Flow-matching cells.
    laguerre : Tensor or None
        (*shape), int32, Laguerre cells of the same samples.
    borders, laguerre_borders : list
        In the plane, the outline (k, 2) of every distinct atom's cell; in space its surface, a pair
        of corners (k, 3) and triangles (m, 3). Empty where not asked for.
    paths : Tensor
        (frames, d, N), trajectories in the user's units.
    arrows : Tensor
        (2, d, N), places and velocities.
    figures : dict
        Costs, agreement and the table of cells, as plain data.
    """

    atoms: Atoms
    grid: Grid
    cells: CellImage
    laguerre: Tensor | None
    borders: list[Any]
    laguerre_borders: list[Any]
    paths: Tensor
    arrows: Tensor
    figures: dict[str, Any]


def tessellate(
    atoms: Atoms, grid: Grid, parameters: TessellationParameters, *, seed: int,
    device: str | torch.device = "cpu", should_stop: ShouldStop,
) -> Job:
    """Compute cells, and compare them; the `Result` is a `Tessellation`.

    Parameters
    ----------
    seed : int
        Of the source points whose paths are shown.
    """
    flow = FlowMatching(atoms, tolerance=parameters.tolerance, device=device)
    cells: CellImage = yield from forward(rasterise(flow, grid, should_stop=should_stop))
    found = _Comparison(flow, grid, parameters, cells)
    if parameters.laguerre:
        yield from found.add_laguerre(should_stop)
    if parameters.outlines:
        yield from found.add_borders(should_stop)
    check_stop(should_stop)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(
        (atoms.ndim, parameters.trajectories), generator=generator, dtype=torch.float64
    )
    times = torch.linspace(0, 1, parameters.frames, dtype=torch.float64)
    paths = flow.trajectories(starts, times).cpu() if starts.numel() else starts[None]
    arrows = velocity_arrows(flow, grid.extent, parameters.arrows, parameters.time)
    yield Result(Tessellation(
        atoms, grid, cells, found.laguerre, found.borders, found.laguerre_borders, paths, arrows,
        found.figures(),
    ))


def path_from(atoms: Atoms, point: np.ndarray) -> np.ndarray:
    """The path of one source point (d,) to its atom as rows (T, d), in the user's units.

    Examples
    --------
    >>> atoms = Atoms(torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    >>> path_from(atoms, np.array([0.5, 2.0]))[[0, -1]].tolist()
    [[0.5, 2.0], [1.0, 0.0]]
    """
    times = torch.linspace(0, 1, PATH_TIMES, dtype=torch.float64)
    start = torch.from_numpy(np.asarray(point, np.float64))[:, None]
    return FlowMatching(atoms).trajectories(start, times)[:, :, 0].numpy()


def velocity_arrows(flow: FlowMatching, extent: float, count: int, time: float) -> Tensor:
    """Places on a grid of ``count`` per axis, and the velocity there, (2, d, N)."""
    ndim = flow.atoms.ndim
    along = torch.linspace(-MARGIN * extent, MARGIN * extent, max(count, 1), dtype=torch.float64)
    places = torch.cartesian_prod(*[along] * ndim).reshape(-1, ndim).T
    places = places[:, : places.shape[1] if count else 0]
    return torch.stack([places, flow.velocity_at(places, time).cpu()])


class _Comparison:
    """Figures of both kinds of cells."""

    def __init__(
        self, flow: FlowMatching, grid: Grid, parameters: TessellationParameters, cells: CellImage
    ) -> None:
        self.flow, self.grid, self.parameters, self.cells = flow, grid, parameters, cells
        self.atoms = flow.atoms
        self.laguerre: Tensor | None = None
        self.transport: LaguerreCells | None = None
        self.borders: list[Any] = []
        self.laguerre_borders: list[Any] = []

    def add_laguerre(self, should_stop: ShouldStop) -> Job:
        if self.atoms.rank > MOST_DIMENSIONS:
            return
        stage = Stage("Laguerre cells", 2)
        self.transport = LaguerreCells.solve(self.atoms, should_stop=should_stop)
        yield stage.progress(1)
        label = torch.empty(self.grid.shape, dtype=torch.int32)
        for part, points in self.grid.all_points():
            check_stop(should_stop)
            label.view(-1)[part] = self.transport.labels(points).int()
        self.laguerre = label
        yield stage.progress(2)

    def add_borders(self, should_stop: ShouldStop) -> Job:
        ndim, most = self.atoms.ndim, MOST_OUTLINED[self.atoms.ndim]
        if len(self.atoms) > most:
            yield Message(f"{len(self.atoms)} atoms: outlines are drawn for at most {most}")
            return
        stage = Stage("outlines", 2)
        extent, pairs = self.grid.extent, torch.from_numpy(touching(self.atoms))
        if ndim == 2:
            lines = curves(self.flow, pairs, extent)
            self.borders = outlines(self.atoms, lines, extent)
        else:
            self.borders = cell_surfaces(self.atoms, faces(self.flow, pairs, extent))
        yield stage.progress(1)
        check_stop(should_stop)
        if self.transport is not None:
            draw = self.transport.polygons if ndim == 2 else self.transport.surfaces
            self.laguerre_borders = list(draw(extent))
        yield stage.progress(2)

    def figures(self) -> dict[str, Any]:
        """Costs, agreement and the table."""
        points = gaussian_sample(self.atoms)
        arrived = self.flow.arrival(points).label.cpu()
        masses = torch.bincount(arrived, minlength=len(self.atoms)).double() / len(arrived)
        figures: dict[str, Any] = {
            "atoms": len(self.atoms), "dimensions": self.atoms.ndim, "spanned": self.atoms.rank,
            "undecided_share": float(self.cells.undecided.double().mean()),
            "computed_share": self.cells.computed / self.cells.label.numel(),
            "flow_matching_cost": self._cost(points, arrived),
            "flow_matching_mass_error": float((masses - self.atoms.weights).abs().max()),
        }
        if self.transport is not None:
            sent = self.transport.labels(points)
            figures["optimal_transport_cost"] = self._cost(points, sent)
            figures["agreement"] = float((sent == arrived).double().mean())
        figures["cells"] = self._table(masses)
        return figures

    def _cost(self, points: Tensor, label: Tensor) -> float:
        """Mean of ``|z - x_label|^2``."""
        goals = self.atoms.positions[:, self.atoms.index[label]]
        return float((points - goals).square().sum(0).mean())

    def _table(self, masses: Tensor) -> list[dict[str, Any]]:
        """One row for each distinct atom: masses, boundedness and neighbours."""
        names = self.atoms.index.tolist()
        free, near = unbounded(self.atoms), _around(touching(self.atoms), names)
        rows = [
            {
                "atom": name, "weight": float(self.atoms.weights[k]),
                "flow_matching_mass": float(masses[k]),
                "flow_matching_unbounded": None if free is None else bool(free[k]),
                "flow_matching_neighbours": near[k],
            }
            for k, name in enumerate(names)
        ]
        if self.transport is not None:
            free, near = self.transport.unbounded(), _around(self.transport.neighbours(), names)
            for k, row in enumerate(rows):
                row["laguerre_mass"] = float(self.transport.masses[k])
                row["laguerre_unbounded"] = bool(free[k])
                row["laguerre_neighbours"] = near[k]
        return rows


def gaussian_sample(atoms: Atoms) -> Tensor:
    """Source points (d, N) that fill the Gaussian evenly, the same every time.

    Masses and costs are means over them, and do not depend on grid and window.
    """
    count = SAMPLE if len(atoms) <= MANY_ATOMS else FEWER
    engine = torch.quasirandom.SobolEngine(atoms.ndim, scramble=True, seed=0)
    return torch.special.ndtri(engine.draw(count, dtype=torch.float64).clamp_(1e-12)).T


def _around(pairs: np.ndarray, names: list[int]) -> list[list[int]]:
    """The neighbours of every atom by their names."""
    found: list[list[int]] = [[] for _ in names]
    for i, j in pairs.tolist():
        found[i].append(names[j])
        found[j].append(names[i])
    return [sorted(around) for around in found]
