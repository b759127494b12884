"""Make the pictures of the documentation: `python tools/screenshots.py` (needs a display).

Without one: `xvfb-run -a -s "-screen 0 1920x1200x24" python tools/screenshots.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """One picture per step of the walk, of the dock alone and of other samples."""
    pictures = {
        "walk": lambda: walk(options.out, size, quick=options.quick),
        "volume": lambda: volume(options.out, size),
        "compare": lambda: compare(options.out, size),
        "uncertainty": lambda: uncertainty(options.out, size),
        "particles": lambda: particles(options.out, size),
        "tessellation": lambda: tessellation(options.out, size),
        "large": lambda: large(options.out, size),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--size", default="1280x800", help="of the window")
    parser.add_argument("--quick", action="store_true", help="small training: layout only")
    parser.add_argument("--only", choices=tuple(pictures), help="one part")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    options.out.mkdir(parents=True, exist_ok=True)
    from napari_invprior.app.demo import errors_reported

    size = (width, height)
    with errors_reported():
        for name, make in pictures.items():
            if options.only in (None, name):
                make()
    for path in options.out.glob("*.png"):
        shrink(path)


def shrink(path: Path) -> None:
    """Keep a picture below 300 kB: 256 colours are plenty for a window and grey images.

    Few pixels have a colour, and they matter: half of the palette is theirs.
    """
    import numpy as np
    from PIL import Image

    picture = Image.open(path)
    if picture.mode == "P":
        return
    pixels = np.asarray(picture.convert("RGB"))
    coloured = np.ptp(pixels.astype(int), axis=-1) > 30
    palette: list[int] = []
    for part, count in ((pixels[coloured], 160), (pixels[~coloured], 96)):
        if len(part):
            palette += Image.fromarray(part[None]).quantize(count).getpalette()[: 3 * count]
    colours = Image.new("P", (1, 1))
    colours.putpalette(palette)
    small = picture.convert("RGB").quantize(palette=colours, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def opened(sample: str, size: tuple[int, int]):
    import napari

    from napari_invprior.app import demo

    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(*size)
    bench = demo.dock(viewer)
    demo.load_sample_layers(viewer, sample)
    demo.pick_references(bench)
    demo.process_events(0.6)
    viewer.reset_view()
    return viewer, bench


def walk(out: Path, size: tuple[int, int], *, quick: bool) -> None:
    """Pick, train, reconstruct."""
    from napari_invprior.app.demo import process_events, save_screenshot, wait_for

    viewer, bench = opened("superresolution_2d", size)
    if quick:
        bench.prior.chooser.choose({"kind": "patchnr", "hidden": 16, "steps": 300})
        bench.result.solver.choose({"kind": "variational", "iterations": 20})
    save_screenshot(viewer, out / "1-picked.png")
    bench.prior.train.click()
    wait_for(lambda: bench.prior.gallery.count > 0 or bench.prior.fitted, bench)
    save_screenshot(viewer, out / "2-training.png")
    wait_for(lambda: bench.runs.runner.state == "idle", bench)
    bench.result.run.click()
    wait_for(lambda: "preview" in viewer.layers or bench.runs.runner.state == "idle", bench)
    save_screenshot(viewer, out / "3-reconstructing.png")
    wait_for(lambda: bench.runs.runner.state == "idle", bench)
    process_events(6)  # notifications fade
    save_screenshot(viewer, out / "4-result.png")
    bench.grab().save(str(out / "dock.png"))
    viewer.theme = "light"
    save_screenshot(viewer, out / "5-light.png")
    viewer.close()


def volume(out: Path, size: tuple[int, int]) -> None:
    """Boxes on a volume."""
    from napari_invprior.app.demo import save_screenshot

    viewer, _ = opened("superresolution_3d", size)
    save_screenshot(viewer, out / "6-volume.png")
    viewer.close()


def compare(out: Path, size: tuple[int, int]) -> None:
    """Several methods side by side."""
    from napari_invprior.app.compare.dock import Compare
    from napari_invprior.app.demo import process_events, save_screenshot, wait_for

    viewer, bench = opened("superresolution_2d", size)
    dock = Compare(viewer)
    viewer.window.add_dock_widget(dock, name="Inverse priors compare", area="right")
    process_events(0.6)
    dock.compare.click()
    wait_for(lambda: dock.run.runner.state == "idle", bench)
    process_events(1)
    save_screenshot(viewer, out / "7-compare.png")
    viewer.close()


def uncertainty(out: Path, size: tuple[int, int]) -> None:
    """Deviation, histogram of a place, coverage."""
    import numpy as np

    from napari_invprior.app.demo import process_events, save_screenshot, wait_for
    from napari_invprior.app.uncertainty.dock import Uncertainty

    viewer, bench = opened("superresolution_2d", size)
    bench.prior.chooser.choose({"kind": "gmm"})
    bench.prior.train.click()
    wait_for(lambda: bench.runs.runner.state == "idle", bench)
    dock = Uncertainty(viewer)
    viewer.window.add_dock_widget(dock, name="Inverse priors uncertainty", area="right")
    process_events(0.6)
    dock.sample.click()
    wait_for(lambda: dock.run.runner.state == "idle", bench)
    dock.show_view("std")
    dock.probe_at(np.asarray(dock.run.layer("mean").data_to_world((118, 74))))
    for layer in viewer.layers:
        if layer.name.startswith(("gravel", "references")):
            layer.visible = False
    viewer.reset_view()
    process_events(8)  # notifications fade
    save_screenshot(viewer, out / "8-uncertainty.png")
    viewer.close()


def particles(out: Path, size: tuple[int, int]) -> None:
    """Two seeds on a photograph, and the particles on their way."""
    import napari

    from napari_invprior.app.demo import process_events, save_screenshot, wait_for
    from napari_invprior.app.particles.dock import Particles
    from napari_invprior.samples import photograph

    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(*size)
    viewer.add_image(photograph("camera"), name="camera")
    dock = Particles(viewer)
    viewer.window.add_dock_widget(dock, name="Inverse priors particles", area="right")
    process_events(0.6)
    dock.add_points.click()
    viewer.layers["seeds"].add([[150, 130], [330, 420]])
    dock.go.click()
    wait_for(lambda: dock.run.runner.state == "idle", dock)
    viewer.dims.set_current_step(0, 6)
    viewer.reset_view()
    process_events(1)
    save_screenshot(viewer, out / "9-particles.png")
    viewer.close()


def tessellation(out: Path, size: tuple[int, int]) -> None:
    """Random atoms, their cells, and the path of a point."""
    import napari

    from napari_invprior.app.demo import process_events, save_screenshot, wait_for
    from napari_invprior.app.tessellation.dock import Tessellation

    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(*size)
    dock = Tessellation(viewer)
    viewer.window.add_dock_widget(dock, name="Inverse priors tessellation", area="right")
    process_events(0.6)
    dock.preset.choose("random")
    dock.add.click()
    wait_for(lambda: dock.run.outcome is not None and dock.run.runner.state == "idle", dock)
    process_events(0.5)
    dock.tell((1.5, -2.0))
    process_events(1)
    save_screenshot(viewer, out / "10-tessellation.png")
    viewer.close()


def large(out: Path, size: tuple[int, int]) -> None:
    """A volume on disk, and its blocks under way."""
    import os
    import tempfile

    import napari
    import numpy as np

    from napari_invprior.app.demo import dock as workbench
    from napari_invprior.app.demo import process_events, save_screenshot, wait_for
    from napari_invprior.app.large.dock import LargeVolumes
    from napari_invprior.geometry import Geometry
    from napari_invprior.io.omezarr import write_image
    from napari_invprior.samples import grey_volume

    place = tempfile.TemporaryDirectory()
    folder = Path(place.name)
    os.environ["XDG_DATA_HOME"] = str(folder / "known")  # the list of jobs begins empty
    truth = grey_volume((160, 256, 256), seed=2)
    noise = np.random.default_rng(0).standard_normal(truth.shape, np.float32)
    write_image(
        folder / "scan.ome.zarr" / "scan", truth + 0.1 * noise,
        Geometry((0.5,) * 3, (0.0,) * 3, units=("micrometer",) * 3), value_range=(0.0, 1.0),
    )
    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(*size)
    bench = workbench(viewer)
    viewer.open(str(folder / "scan.ome.zarr"), plugin="napari-invprior")
    viewer.add_image(
        grey_volume((64, 64, 64), seed=0), name="good", scale=(0.5,) * 3, visible=False,
        units=("micrometer",) * 3,
    )
    bench.data.observation.choose("scan")
    bench.data.physics.choose({"kind": "denoising"})
    bench.data.noise.choose({"kind": "gaussian", "sigma": 0.1})
    bench.references.image.choose("good")
    bench.prior.chooser.choose({"kind": "gmm", "components": 10})
    bench.result.solver.choose({"kind": "half_quadratic", "steps": 6})
    bench.result.automatic.setChecked(False)
    bench.result.set_weight(1.0)
    bench.references.picker.enter()
    bench.references.picker.set_size(60)
    bench.references.picker.add((15.0, 15.0, 15.0))
    bench.references.picker.leave()
    bench.data.part_row.choice.choose("view")
    process_events(0.6)
    bench.prior.train.click()
    wait_for(lambda: bench.runs.runner.state == "idle", bench)
    bench.data.part_row.choice.choose("whole")
    dock = LargeVolumes(viewer)
    viewer.window.add_dock_widget(dock, name="Inverse priors large volumes", area="right")
    process_events(0.6)
    dock.folder.setText(str(folder / "result"))
    dock.edge.setText("64")
    dock.start.click()
    wait_for(lambda: dock.map.count("done") >= 5 or dock.run.runner.state == "idle", dock)
    process_events(0.6)
    viewer.dims.set_point(0, 20.0)
    viewer.reset_view()
    process_events(1)
    save_screenshot(viewer, out / "11-large-volume.png")
    dock.cancel.click()
    wait_for(lambda: dock.run.runner.state == "idle", dock)
    viewer.close()
    place.cleanup()


if __name__ == "__main__":
    main()
