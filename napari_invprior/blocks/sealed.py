"""JSON with a checksum, so that what was damaged is noticed and not taken for something else.

Examples
--------
>>> text = sealed({"a": 1})
>>> unsealed(text)
{'a': 1}
>>> unsealed(text.replace(b"1", b"2", 1))
Traceback (most recent call last):
ValueError: the checksum does not agree with the contents
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

CHECKSUM = "sha256"


def sealed(data: dict[str, Any], indent: int | None = None) -> bytes:
    """Plain data as JSON, with a checksum beside it."""
    return json.dumps(data | {CHECKSUM: _checksum(data)}, indent=indent).encode()


def unsealed(text: bytes) -> dict[str, Any]:
    """The data that `sealed` wrote.

    Raises
    ------
    ValueError
        If they are not what was written.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.pop(CHECKSUM, None) != _checksum(data):
        raise ValueError("the checksum does not agree with the contents")
    return data


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
