"""An OME-Zarr stack written image by image, a valid image from the first one on.

Examples
--------
>>> import tempfile
>>> group = Path(tempfile.mkdtemp()) / "result.ome.zarr" / "samples"
>>> stack = StackWriter(group, 9, (4, 5), Geometry.identity(2))
>>> stack.put(0, np.ones((4, 5), np.float32))
>>> stack.finish(1)
>>> stack.finest.shape, group.is_dir()
((1, 4, 5), True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from napari_invprior.errors import JobError
from napari_invprior.geometry import Geometry
from napari_invprior.io.files import check_free, swap, write_atomic
from napari_invprior.io.omezarr import create_level, multiscale, omero, pyramid
from napari_invprior.io.omezarr_read import ATTRIBUTE, plain


class StackWriter:
    """A stack whose images come one after the other, in any order of places.

    Parameters
    ----------
    group : Path
        ``DIR/result.ome.zarr/<name>``. Until `finish` the stack grows in ``<name>-incomplete``
        beside it; what lies at ``group`` is replaced only then.
    count : int
        Places.
    each : tuple of int
        Shape of one image, ([C,] *space).
    geometry : Geometry
        Placement of the space axes.
    channels : bool
        Whether the first axis of an image counts channels.
    rgb : bool
        Whether the channels are colours.

    Raises
    ------
    JobError
        If the disk has no room for the stack.
    """

    def __init__(
        self, group: Path, count: int, each: Sequence[int], geometry: Geometry, *,
        channels: bool = False, rgb: bool = False,
        value_range: tuple[float, float] = (0.0, 1.0), attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.ndim = len(geometry.scale)
        self._attributes, self._geometry = dict(attributes or {}), geometry
        self._axes = ("tc" if channels else "t") + "zyx"[-self.ndim :]
        names = None
        if channels:
            names = ["red", "green", "blue"] if rgb else [f"channel {i}" for i in range(each[0])]
        self._prepare(group, int(4 * count * np.prod(each) * 1.4))
        root = group.parent
        if root.suffix == ".zarr" and not (root / "zarr.json").exists():
            write_atomic(root / "zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
        self._group, self._growing = group, group.with_name(f"{group.name}-incomplete")
        self._store = zarr.open_group(self._growing, mode="w", zarr_format=3)
        empty = np.broadcast_to(np.float32(0), (1, *each))
        self._levels = [
            create_level(self._store, str(number), level, self.ndim)
            for number, level in enumerate(pyramid(empty, self.ndim))
        ]
        self._resize(count)
        self._omero = omero(each[0] if channels else 1, names, value_range)
        self._range = value_range
        self._describe(complete=False)

    @staticmethod
    def _prepare(group: Path, needed: int) -> None:
        """Make the folder; refuse before anything is drawn where the disk has no room."""
        check_free(group, needed)
        try:
            group.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"{group}: cannot be made ({error.strerror or error})") from error

    def _resize(self, count: int) -> None:
        for level in self._levels:
            level.resize((count, *level.shape[1:]))

    def _describe(self, *, complete: bool) -> None:
        scales = multiscale(self._group.name, self._axes, self._geometry, len(self._levels),
                            self._levels[0].shape)
        ome = {"version": "0.5", "multiscales": [scales], "omero": self._omero}
        own = {"geometry": asdict(self._geometry), "value_range": self._range,
               "complete": complete}
        self._store.attrs.put(plain({"ome": ome, ATTRIBUTE: {**self._attributes, **own}}))

    def put(self, place: int, image: np.ndarray) -> None:
        """Write the image at a place, at every level."""
        for level, values in zip(self._levels, pyramid(image, self.ndim), strict=True):
            level[place] = values

    def finish(self, count: int) -> None:
        """Cut the stack to its first ``count`` images and move it to its place."""
        self._resize(count)
        self._describe(complete=True)
        swap(self._growing, self._group)
        self._levels = [  # where they lie now
            zarr.open_array(self._group / str(number), mode="r")
            for number in range(len(self._levels))
        ]

    @property
    def finest(self) -> Any:
        """The array at full resolution."""
        return self._levels[0]
