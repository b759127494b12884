"""What the user set under Preferences > Plugins, with the defaults of the manifest."""

from __future__ import annotations

import os
from typing import Any

from napari.settings import get_plugin_settings


def _read(section: str, key: str, default: Any) -> Any:
    try:
        settings = get_plugin_settings("napari-invprior")
    except KeyError:  # run from a checkout that is not installed as a plugin
        return default
    return getattr(getattr(settings, section, None), key, default)


def device() -> str:
    """``"auto"``, ``"cpu"`` or ``"cuda"``."""
    return str(_read("compute", "device", "auto"))


def workers() -> int:
    """Processes that compute the blocks of large volumes; 0 for the window's own."""
    return int(_read("compute", "workers", 0))


def cluster() -> str:
    """Address of a dask scheduler, or nothing."""
    return str(_read("compute", "cluster", ""))


def cpu_threads() -> int:
    """Threads of one job: the preference, or all cores but one, which the window needs."""
    wanted = int(_read("compute", "cpu_threads", 0))
    return wanted if wanted > 0 else max(1, (os.cpu_count() or 1) - 1)
