"""Paths, limits and atomic writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from napari_invprior.errors import FileRefused, InvalidInput, JobError
from napari_invprior.io import files


def test_a_write_replaces_the_whole_file(tmp_path):
    target = tmp_path / "new folder" / "größe.json"
    files.write_atomic(target, b"first, longer")
    files.write_atomic(target, b"second")
    assert target.read_bytes() == b"second"
    assert os.listdir(target.parent) == [target.name]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for name in ("a", "b"):
        with files.replacing(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["b"]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 120])
def test_long_names(tmp_path, name):
    files.write_atomic(tmp_path / name, b"1")
    assert os.listdir(tmp_path) == [name]


def test_too_long_names_are_a_job_error(tmp_path):
    with pytest.raises(JobError, match="could not be written"):
        files.write_atomic(tmp_path / ("x" * 300), b"1")
    assert os.listdir(tmp_path) == []


def test_output_must_not_be_an_input(tmp_path):
    given = tmp_path / "in.npy"
    given.touch()
    (tmp_path / "link.npy").symlink_to(given)
    for output in (given, tmp_path / "." / "in.npy", tmp_path / "link.npy"):
        with pytest.raises(InvalidInput, match="output and input are the same"):
            files.check_output(output, [given])
    files.check_output(tmp_path / "a" / "b" / "out.npy", [given], needed=1)


def test_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="may not be written to"):
        files.check_output(tmp_path / "file" / "out.npy")


def test_free_space_is_checked_before(tmp_path):
    with pytest.raises(JobError, match=r"1024\.0 TiB are needed, .* are free"):
        files.check_output(tmp_path / "out", needed=1 << 50)
    with pytest.raises(JobError, match="are needed"), files.replacing(tmp_path / "o", 1 << 50):
        pytest.fail("the body must not run")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("part", ["../a", "a/../../b", "/etc", "\\\\server", "C:\\x", "c:x", "a\0"])
def test_paths_out_of_a_root(tmp_path, part):
    with pytest.raises(FileRefused, match="leads out"):
        files.inside(tmp_path, part, "store")


def test_links_out_of_a_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "fine").symlink_to(root)
    with pytest.raises(FileRefused, match="link that leads out"):
        files.inside(root, "link/x", "store")
    assert files.inside(root, "fine/x", "store") == root / "fine" / "x"
    assert files.inside(root, "a..b/c", "store") == root / "a..b" / "c"


def test_reads_are_tried_three_times(monkeypatch):
    monkeypatch.setattr(files, "PAUSE", 0)
    calls = []

    def shaky():
        calls.append(1)
        if len(calls) < 3:
            raise OSError(errno.EIO, "input/output error")
        return "read"

    assert files.retrying(shaky) == "read"
    calls.clear()
    monkeypatch.setattr(files, "ATTEMPTS", 2)
    with pytest.raises(OSError, match="input/output"):
        files.retrying(shaky)


def test_other_errors_are_not_tried_again():
    calls = []

    def denied():
        calls.append(1)
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        files.retrying(denied)
    assert len(calls) == 1


def test_limit():
    files.within_limit("x", 10, 10)
    with pytest.raises(FileRefused, match="x: needs 11 bytes, the limit is 10 bytes"):
        files.within_limit("x", 11, 10)
    assert 0 < files.memory_limit() < 1 << 50


def test_local_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("~/x.png") == tmp_path / "x.png"
    assert files.local_path("x.png", folder=Path("/data")) == Path("/data/x.png")
    assert files.local_path("C:x.png") == Path("C:x.png")
