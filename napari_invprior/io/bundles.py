"""Saved priors: one ``.safetensors`` file with a JSON header; nothing in it can run code.

The header holds the format version, the method and its parameters, what the prior was trained
on (``facts``), the versions of the packages and a checksum of all numbers. The previous good
file is kept as ``NAME.bak``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from napari_invprior import registry
from napari_invprior.errors import FileRefused, InvalidInput
from napari_invprior.io.files import (
    PICKLED,
    existing,
    local_path,
    reason_of,
    refusing,
    retrying,
    within_limit,
    write_atomic,
)
from napari_invprior.io.omezarr_read import plain
from napari_invprior.io.provenance import versions
from napari_invprior.parameters import validate
from napari_invprior.priors.base import Prior

FORMAT = 1
"""Version of the header; files of newer versions are refused."""

KEY = "napari_invprior"
MAX_HEADER = 16 << 20
MAX_CHANNELS = 4096
MAX_ARRAYS = 20_000
NEEDED = ("format", "method", "parameters", "ndim", "channels", "sha256")


class Damaged(FileRefused):
    """The file is not what was written; the previous one may be."""


@dataclass(frozen=True)
class Bundle:
    """A file's header and numbers, checked against each other."""

    header: dict[str, Any]
    state: dict[str, Tensor]


def save_prior(path: Path, prior: Prior, facts: Mapping[str, Any] | None = None) -> None:
    """Write a fitted prior; a good file of that name becomes ``NAME.bak``.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``.
    prior : Prior
        The fitted prior.
    facts : mapping, optional
        What `load_prior` should give back: patch statistics, voxel size (``"scale"``, ``"units"``),
        intensity scale (``"value_range"``), hash of the training data, and the like.

    Raises
    ------
    InvalidInput
        If the prior is not fitted or the name ends differently.
    JobError
        If the file cannot be written; what was there stays.
    """
    if path.suffix != ".safetensors":
        raise InvalidInput(f"{path.name}: saved priors end in .safetensors")
    if not prior.is_fitted:
        raise InvalidInput(f"{path.name}: the prior {prior.name!r} is not fitted; nothing to save")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in prior.state().items()}
    _finite(state, path.name)
    header = {
        "format": FORMAT,
        "method": prior.name,
        "parameters": prior.parameters.model_dump(mode="json"),
        "ndim": prior.ndim,
        "channels": prior.channels,
        "facts": plain(facts or {}),
        "versions": versions(),
        "sha256": checksum(state),
    }
    data = safetensors.torch.save(state, metadata={KEY: json.dumps(header)})
    if path.exists():
        with suppress(FileRefused):  # a damaged file must not push out the good backup
            _read(path)
            write_atomic(backup(path), path.read_bytes())
    write_atomic(path, data)


def load_prior(
    path: str | Path, device: str = "cpu", *, limit: int | None = None
) -> tuple[Prior, dict[str, Any]]:
    """Read a saved prior.

    Parameters
    ----------
    path : str or Path
        The ``.safetensors`` file.
    device : str
        Where the prior will live.
    limit : int, optional
        Bytes that the file may have; a quarter of the free memory by default.

    Returns
    -------
    prior : Prior
        Fitted, of the method that the file names.
    facts : dict
        The facts given to `save_prior`, with ``"method"``, ``"versions"`` and ``"notes"`` (a tuple
        of sentences that the user should see).

    Raises
    ------
    FileRefused
        If the file is pickled, damaged (and there is no good backup), newer than this package,
        or does not fit its method; the message names what is wrong.
    """
    path = local_path(path)
    notes: tuple[str, ...] = ()
    try:
        bundle = _read(path, limit)
    except Damaged as error:
        bundle = _from_backup(path, error, limit)
        notes = (f"{error}; the previous version {backup(path).name} is used",)
    prior = _build(bundle, path.name, device)
    header = bundle.header
    extra = {"method": header["method"], "versions": header.get("versions", {}), "notes": notes}
    return prior, {**header.get("facts", {}), **extra}


def backup(path: Path) -> Path:
    """Where the previous good version of a saved prior lies."""
    return path.with_name(path.name + ".bak")


def read_header(path: str | Path) -> dict[str, Any]:
    """The header alone, quickly: method, parameters, facts.

    Raises
    ------
    FileRefused
        As `load_prior`, but the numbers are not looked at.
    """
    path = existing(local_path(path))
    _refuse_pickles(path)
    with _damage(path), safe_open(path, framework="pt") as file:
        return _header(file.metadata(), path.name)


def checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and numbers."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, limit: int | None = None) -> Bundle:
    """Header and numbers, checked.

    Raises
    ------
    Damaged
        If the file is not what was written.
    FileRefused
        If it is intact but of another kind, or newer.
    """
    try:
        existing(path)
    except InvalidInput as error:
        if backup(path).exists():
            raise Damaged(str(error)) from None
        raise
    _refuse_pickles(path)
    within_limit(path.name, path.stat().st_size, limit)
    with _damage(path), retrying(lambda: safe_open(path, framework="pt")) as file:
        header = _header(file.metadata(), path.name)
        if len(file.keys()) > MAX_ARRAYS:
            raise FileRefused(
                f"{path.name}: holds {len(file.keys())} arrays; a saved prior has no more than "
                f"{MAX_ARRAYS}"
            )
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _finite(state, path.name)
        if checksum(state) != header["sha256"]:
            raise Damaged(f"{path.name}: damaged (the checksum of its numbers is another)")
    return Bundle(header, state)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever the decoder stumbles over is damage of the file."""
    try:
        with refusing(path.name):
            yield
    except FileRefused as error:
        if isinstance(error.__cause__, Exception):
            reason = reason_of(error.__cause__)
            raise Damaged(f"{path.name}: damaged or truncated ({reason})") from error
        raise


def _header(metadata: Mapping[str, str] | None, name: str) -> dict[str, Any]:
    """Our header, complete and not newer than we are."""
    if not metadata or KEY not in metadata:
        raise FileRefused(f"{name}: a safetensors file, but no saved prior of this package")
    text = metadata[KEY]
    if len(text) > MAX_HEADER:
        raise FileRefused(f"{name}: its header has {len(text)} characters")
    header = json.loads(text)
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise FileRefused(
            f"{name}: format {version}; this version reads up to {FORMAT}: update napari-invprior"
        )
    missing = [key for key in NEEDED if not isinstance(header, dict) or key not in header]
    if missing or version != FORMAT:
        raise FileRefused(f"{name}: its header lacks {', '.join(missing) or 'a known format'}")
    _check_facts(header, name)
    return dict(header)


def _check_facts(header: Mapping[str, Any], name: str) -> None:
    """Refuse facts that are no table, and scales in them that are not two numbers."""
    for key in ("facts", "versions"):
        if not isinstance(header.get(key, {}), dict):
            raise FileRefused(f"{name}: {key} in its header is {str(header[key])[:40]!r}, no table")
    for key in ("intensity_scale", "value_range"):
        pair = header.get("facts", {}).get(key)
        kinds = [type(value) for value in pair] if isinstance(pair, list) else []
        if pair is not None and (len(kinds) != 2 or not {*kinds} <= {int, float}):
            raise FileRefused(
                f"{name}: {key} in its header is {str(pair)[:40]!r}; two numbers are needed"
            )


def _build(bundle: Bundle, name: str, device: str) -> Prior:
    """The prior of the method that the header names, with the numbers of the file."""
    header = bundle.header
    shape = header["ndim"], header["channels"]
    whole = all(isinstance(n, int) for n in shape)
    if not whole or shape[0] not in (2, 3) or not 1 <= shape[1] <= MAX_CHANNELS:
        given = f"ndim {shape[0]!r:.40} and channels {shape[1]!r:.40}"
        raise FileRefused(
            f"{name}: {given} make no prior; ndim is 2 or 3, channels 1 to {MAX_CHANNELS}"
        )
    try:
        method = registry.get("prior", str(header["method"]))
        parameters = validate(method.parameters, header["parameters"], "parameters")
        prior = method.cls(parameters, ndim=shape[0], channels=shape[1], device=device)
        with refusing(name):
            prior.load_state(bundle.state)
    except InvalidInput as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise FileRefused(f"{name}: {reason}") from error
    assert isinstance(prior, Prior)
    return prior


def _from_backup(path: Path, error: Damaged, limit: int | None) -> Bundle:
    if not backup(path).exists():
        raise FileRefused(f"{error}; there is no previous version {backup(path).name}") from error
    try:
        return _read(backup(path), limit)
    except InvalidInput as second:
        raise FileRefused(f"{error}; no good previous version ({second})") from error


def _refuse_pickles(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    if head[8:] == b"{" and length > MAX_HEADER:
        raise FileRefused(f"{path.name}: a table of {length} bytes; {MAX_HEADER} are possible")
    # The length that safetensors begin with may start with a pickle's byte; its table follows.
    pickled = head[:1] == b"\x80" and head[8:] != b"{"
    if path.suffix.lower() in PICKLED or pickled or head[:4] == b"PK\3\4":
        raise FileRefused(
            f"{path.name}: pickled files may run code and are never opened; fit the prior anew "
            "and save it as .safetensors"
        )
    if head[:6] == b"\x93NUMPY":
        raise FileRefused(f"{path.name}: a NumPy array, not a saved prior (.safetensors)")


def _finite(state: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Damaged(f"{name}: {key!r} holds NaN or infinity")
