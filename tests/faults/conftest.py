"""Jobs that were run without any fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.clients import serial_run


@pytest.fixture(scope="session")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of 24 blocks; the pyramid has a level that the client makes at the end."""
    return serial_run(tmp_path_factory.mktemp("serial"), (192, 72, 24))


@pytest.fixture(scope="session")
def long_serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of 54 blocks."""
    return serial_run(tmp_path_factory.mktemp("long"), (144, 72, 72))
