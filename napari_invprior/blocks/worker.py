"""What dask loads into each worker process that `pool.Cluster` starts."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the client: it stops the blocks."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
