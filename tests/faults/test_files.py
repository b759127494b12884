"""Full disks, missing rights, interruptions: the last good file stays, and nothing half is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.geometry import Geometry
from napari_invprior.io import files
from napari_invprior.io.images import load
from napari_invprior.io.omezarr import read_image, write_image
from napari_invprior.sources import Source

GEOMETRY = Geometry.identity(2)


def failing(number: int, text: str):
    def fail(*_args, **_kwargs):
        raise OSError(number, text)

    return fail


def entries(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


FAULTS = [
    (errno.ENOSPC, "the disk is full; 6 bytes are needed"),
    (errno.EDQUOT, "the disk is full"),
    (errno.EACCES, "denied"),
    (errno.EROFS, "read-only"),
    (errno.EIO, "error"),
]


@pytest.mark.parametrize(("number", "words"), FAULTS)
@pytest.mark.parametrize("step", ["fsync", "open", "replace", "mkdir"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, number, words, step):
    target = tmp_path / "model.bin"
    files.write_atomic(target, b"good")
    fail = failing(number, os.strerror(number))
    owner = {"fsync": os, "open": Path, "replace": Path, "mkdir": Path}[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(JobError, match=rf"model\.bin.*(?i:{words})"):
            files.write_atomic(target, b"better")
    assert target.read_bytes() == b"good"
    assert entries(tmp_path) == ["model.bin"]


def test_an_error_in_the_middle_of_a_write(tmp_path, monkeypatch):
    target = tmp_path / "x.bin"
    files.write_atomic(target, b"good")
    with pytest.raises(ZeroDivisionError), files.replacing(target) as temporary:
        temporary.write_bytes(b"ha")
        raise ZeroDivisionError
    assert target.read_bytes() == b"good"
    assert entries(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("step", ["chunk", "fsync", "rename"])
def test_a_failed_result_keeps_the_old_one(tmp_path, monkeypatch, number, step):
    group = tmp_path / "result.ome.zarr" / "x"
    write_image(group, np.ones((8, 9)), GEOMETRY)
    before = entries(tmp_path)
    fail = failing(number, os.strerror(number))
    with monkeypatch.context() as patch:
        if step == "chunk":
            patch.setattr(zarr.Array, "__setitem__", fail)
        elif step == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "rename", fail)
        with pytest.raises(JobError, match=r"result\.ome\.zarr/x: could not be written"):
            write_image(group, np.zeros((8, 9)), GEOMETRY)
    assert entries(tmp_path) == before
    assert (read_image(group).array == 1).all()


def test_the_second_rename_fails(tmp_path, monkeypatch):
    """The old folder is already aside: it must come back."""
    group = tmp_path / "r.zarr" / "x"
    write_image(group, np.ones((8, 9)), GEOMETRY)
    rename, calls = Path.rename, []

    def second_fails(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(JobError):
            write_image(group, np.zeros((8, 9)), GEOMETRY)
    assert len(calls) == 3
    assert (read_image(group).array == 1).all()
    assert sorted(os.listdir(tmp_path / "r.zarr")) == ["x", "zarr.json"]


def test_a_disk_too_small_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(JobError, match=r"MiB are needed, 100 bytes are free"):
        write_image(tmp_path / "x", np.zeros((1000, 1000)), GEOMETRY)
    assert entries(tmp_path) == []


def test_a_real_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(JobError, match="the disk is full"), files.replacing(tmp_path / "x") as path:
        path.symlink_to("/dev/full")
        with path.open("wb") as file:
            file.write(b"1")
    assert entries(tmp_path) == []


def test_a_folder_without_rights(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InvalidInput, match="may not be written to"):
            files.check_output(tmp_path / "x")
        with pytest.raises(JobError, match="denied"):
            files.write_atomic(tmp_path / "x", b"1")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((8, 9)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InvalidInput, match=r"x\.npy: permission to read is missing"):
        load(Source(path=str(path)))


def test_a_drive_that_comes_back(tmp_path, monkeypatch):
    path, calls = tmp_path / "x.npy", []
    np.save(path, np.ones((8, 9)))
    opened = Path.open

    def shaky(self, *args, **kwargs):
        calls.append(self)
        if len(calls) < 3:
            raise OSError(errno.ESTALE, "stale file handle")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(files, "PAUSE", 0)
    monkeypatch.setattr(Path, "open", shaky)
    assert load(Source(path=str(path))).space == (8, 9)
    calls.clear()
    monkeypatch.setattr(files, "ATTEMPTS", 2)
    with pytest.raises(InvalidInput, match=r"x\.npy.*stale"):
        load(Source(path=str(path)))


def test_a_file_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((8, 9)))
    monkeypatch.setattr(Path, "open", failing(errno.ENOENT, "No such file or directory"))
    with pytest.raises(InvalidInput, match=r"x\.npy"):
        load(Source(path=str(path)))
