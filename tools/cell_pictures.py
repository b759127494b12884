"""Draw the pictures of docs/tessellations.md from the shipped examples."""

from __future__ import annotations

import argparse
from pathlib import Path

from napari_invprior.recipes import execute, load_example
from napari_invprior.recipes.cells_figure import cells_png

SHOWN = (
    "triangle-with-centre", "pentagon", "product-grid", "obtuse-edge", "acute-edge", "random",
    "tetrahedron-with-centre",
)
EDGE = 760


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    for name in SHOWN:
        outcome = execute(load_example(f"tessellation-{name}"))
        path = options.out / f"cells-{name}.png"
        path.write_bytes(cells_png(outcome.detail, EDGE))
        print(path)


if __name__ == "__main__":
    main()
