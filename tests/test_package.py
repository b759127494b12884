"""The package as a whole: floors, import cost, manifest, size of modules."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "napari_invprior"
MODULES = sorted(PACKAGE.rglob("*.py"))
LOW_MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in MODULES
    if "app" not in path.relative_to(PACKAGE).parts
]


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_floors_0_to_4_import_neither_napari_nor_qt():
    found = python(f"""
import importlib, sys
for name in {LOW_MODULES}:
    importlib.import_module(name)
    upper = [m for m in sys.modules if m.split(".")[0] in
             ("napari", "qtpy", "PyQt5", "PyQt6", "PySide6", "superqt", "pyqtgraph", "magicgui")]
    if upper:
        print(name, "imports", upper[0])
        break
""")
    assert found == ""


def test_importing_the_package_does_not_import_torch(record_property):
    seconds, torch = python("""
import sys, time
start = time.perf_counter()
import napari_invprior
print(time.perf_counter() - start, "torch" in sys.modules)
""").split()
    record_property("import_seconds", seconds)
    assert torch == "False"
    assert python("import napari_invprior; print(callable(napari_invprior.run))") == "True"


def test_both_manifests_are_one():
    assert (ROOT / "napari.yaml").read_bytes() == (PACKAGE / "napari.yaml").read_bytes()


def test_manifest_is_complete_and_its_functions_exist():
    from importlib.metadata import distribution

    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(ROOT / "napari.yaml")
    manifest.validate_imports()
    found = PluginManifest.from_distribution("napari-invprior")
    assert manifest.name == found.name == distribution("napari-invprior").metadata["Name"]
    contributions = found.contributions
    used = {c.command for c in contributions.widgets} | {
        c.command for c in contributions.sample_data
    } | {c.command for c in contributions.readers}
    assert used == {c.id for c in contributions.commands}
    assert {"device", "cpu_threads"} <= set(contributions.configurations["compute"].properties)


@pytest.mark.gui
def test_napari_shows_menus_and_preferences():
    found = python("""
import napari
from napari._app_model import get_app_model
from napari.settings import get_plugin_settings
viewer = napari.Viewer(show=False)
menus = get_app_model().menus
names = lambda menu: [getattr(i, "submenu", None) or i.command.id for i in menus.get_menu(menu)]
print("invprior" in names("napari/layers/filter"))
print(names("invprior"))
print([n for n in names("napari/plugins") if "invprior" in n])
print(sorted(n.split(".")[-1] for n in names("napari/file/samples/napari-invprior")))
settings = get_plugin_settings("napari-invprior")
print(settings.compute.device, settings.compute.cpu_threads, repr(settings.storage.cache_folder))
viewer.close()
""")
    assert found.splitlines()[-5:] == [
        "True",
        ("['napari-invprior.workbench', 'napari-invprior.large_volumes', "
        "'napari-invprior.compare', 'napari-invprior.uncertainty', 'napari-invprior.particles', "
        "'napari-invprior.tessellation']"),
        "['napari/plugins/napari-invprior']",
        "['inpainting_2d', 'superresolution_2d', 'superresolution_3d', 'tomography_2d']",
        "auto 0 ''",
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_small(path):
    assert len(path.read_text().splitlines()) <= 450


@pytest.mark.parametrize("name", LOW_MODULES)
def test_examples_in_docstrings_are_true(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_version_is_declared_once():
    from importlib.metadata import version

    import napari_invprior

    assert version("napari-invprior") == napari_invprior.__version__


def test_constraints_allow_what_is_required():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and line[0] != "#")
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        name = requirement.name.lower()
        if name != "napari-invprior" and name in pins:
            assert requirement.specifier.contains(pins[name]), requirement
        else:
            assert name in ("napari-invprior", "matplotlib"), f"{name} is not pinned"
