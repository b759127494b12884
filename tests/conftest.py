"""What all tests share: one torch thread, private settings folders, a display or a named reason."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
REQUIRE_GUI = os.environ.get("INVPRIOR_REQUIRE_GUI") == "1"

# Before napari, Qt or torch are imported: they read these once.
PRIVATE = Path(tempfile.mkdtemp(prefix="invprior-tests-"))
atexit.register(shutil.rmtree, PRIVATE, ignore_errors=True)
for _kind in ("CONFIG", "CACHE", "DATA", "STATE"):
    os.environ[f"XDG_{_kind}_HOME"] = str(PRIVATE / _kind.lower())
os.environ["NAPARI_CONFIG"] = str(PRIVATE / "napari.yaml")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Reproducible, and without time limits: the machine is shared.
settings.register_profile(
    "invprior",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("invprior")


def _system_packages() -> ModuleType:
    """The script that knows which system packages a window needs."""
    loader = SourceFileLoader("system_packages", str(ROOT / "tools" / "system-packages"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _missing_for_gui() -> list[str]:
    """Debian packages that the GUI tests lack; a display that is there needs no virtual one."""
    missing: list[str] = _system_packages().missing()
    if os.environ.get("DISPLAY"):
        missing = [name for name in missing if name not in ("xvfb", "xauth")]
    return missing


MISSING = _missing_for_gui()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Take pytest-qt out before it imports Qt where Qt cannot be loaded."""
    del parser
    if MISSING:
        pluginmanager.unregister(name="pytest-qt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GUI tests, naming what is missing; where a GUI is required that is a failure."""
    if not MISSING or REQUIRE_GUI:
        return
    reason = f"no window can be opened here: apt-get install {' '.join(MISSING)}"
    for item in items:
        if item.get_closest_marker("gui"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a GUI test, before its fixtures can abort the process, where a GUI is required."""
    if MISSING and REQUIRE_GUI and item.get_closest_marker("gui"):
        pytest.fail(
            f"INVPRIOR_REQUIRE_GUI=1, but these are missing: {' '.join(MISSING)}", pytrace=False
        )


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Small networks on a busy machine collapse with all threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images for development; tests that need it are skipped without it."""
    folder = Path(os.environ.get("INVPRIOR_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder} (set INVPRIOR_DATA)")
    return folder
