"""Jobs that were run without any fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.clients import serial_run


@pytest.fixture(scope="session")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of 8 blocks; the pyramid has a level that the client makes at the end."""
    return serial_run(tmp_path_factory.mktemp("serial"), (192, 24, 24))


@pytest.fixture(scope="session")
def serial_of_24(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A longer one, for clients with workers."""
    return serial_run(tmp_path_factory.mktemp("longer"), (192, 72, 24))
