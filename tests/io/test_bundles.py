"""Saved priors: round trip, refusals by name, and the previous good version."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_invprior import registry
from napari_invprior.errors import FileRefused, InvalidInput
from napari_invprior.io.bundles import KEY, backup, load_prior, read_header, save_prior
from napari_invprior.jobs import Job, Result
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.patchwise import PatchPotential


class TinyPrior(PatchPotential):
    """Squared distance of patches to one learned patch."""

    class Parameters(Parameters):
        """What can be set."""

        patch_size: int = parameter(3, "Edge.", ge=1, le=9)
        channels: str = parameter("separate", "Channels.")
        weight: float = parameter(1.0, "Factor.", gt=0)

    mean: torch.Tensor | None = None

    @property
    def is_fitted(self) -> bool:
        return self.mean is not None

    def fit(self, references: Any, **_: Any) -> Job:
        self.mean = torch.zeros(self.dim)
        yield Result(self)

    def potential(self, patches: torch.Tensor) -> torch.Tensor:
        return self.parameters.weight * (patches - self.mean[:, None]).square().sum(0)

    def potential_and_grad(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.potential(patches), 2 * self.parameters.weight * (patches - self.mean[:, None])

    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "count": torch.tensor(7)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        if set(state) != {"mean", "count"} or state["mean"].shape != (self.dim,):
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            raise InvalidInput(f"the state has {shapes}, 'mean' of shape ({self.dim},) is needed")
        self.mean = state["mean"].to(self.device)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    registry.register(kind="prior", name="tiny", title="Tiny")(TinyPrior)
    yield
    del registry._METHODS["prior", "tiny"]


def tiny(value: float = 0.5, **parameters: Any) -> TinyPrior:
    prior = TinyPrior(TinyPrior.Parameters(**parameters), ndim=2, channels=1)
    prior.mean = torch.full((prior.dim,), value)
    return prior


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "mein Prior é.safetensors"
    save_prior(path, tiny(0.25), {"scale": (1.0, 2.0), "value_range": np.array([0, 255])})
    return path


def test_headers_of_any_length_are_no_pickles(tmp_path):
    path, met = tmp_path / "p.safetensors", set()
    for length in range(0, 512, 8):
        save_prior(path, tiny(), {"note": "x" * length})
        met.add(path.read_bytes()[0])
        load_prior(path)
    assert 0x80 in met  # the first byte of every pickle


def test_round_trip(saved):
    prior, facts = load_prior(saved)
    x = torch.rand(2, 1, 8, 9)
    assert isinstance(prior, TinyPrior)
    torch.testing.assert_close(prior.g(x), tiny(0.25).g(x))
    assert facts["scale"] == [1.0, 2.0]
    assert facts["value_range"] == [0, 255]
    assert facts["method"] == "tiny"
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]
    assert facts["notes"] == ()
    assert read_header(saved)["parameters"] == {
        "patch_size": 3, "channels": "separate", "weight": 1.0,
    }  # fmt: skip


def test_parameters_come_back(tmp_path):
    save_prior(tmp_path / "p.safetensors", tiny(patch_size=5, weight=2.5))
    prior, _ = load_prior(str(tmp_path / "p.safetensors"))
    assert prior.parameters == TinyPrior.Parameters(patch_size=5, weight=2.5)


@pytest.mark.parametrize("name", ["gmm", "patchnr"])
def test_shipped_priors_round_trip(tmp_path, name):
    from napari_invprior.jobs import run
    from napari_invprior.priors.base import Reference

    method = registry.get("prior", name)
    fast = {"gmm": {"components": 2}, "patchnr": {"steps": 3}}[name]
    known = method.parameters.model_fields
    prior = method.cls(method.parameters(**{k: v for k, v in fast.items() if k in known}), ndim=2)
    generator = torch.Generator().manual_seed(0)
    job = prior.fit([Reference(torch.rand(1, 40, 40, generator=generator))], seed=0)
    if name == "gmm":
        run(job)
    else:  # the first steps are enough
        for _, _event in zip(range(5), job, strict=False):
            if prior.is_fitted:
                break
        job.close()
    if not prior.is_fitted:
        pytest.skip(f"{name}: not fitted after five events")
    save_prior(tmp_path / "p.safetensors", prior)
    again, _ = load_prior(tmp_path / "p.safetensors")
    x = torch.rand(1, 1, 20, 20, generator=generator)
    torch.testing.assert_close(again.g(x), prior.g(x))
    torch.testing.assert_close(again.grad(x), prior.grad(x))


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(InvalidInput, match="not fitted"):
        save_prior(tmp_path / "p.safetensors", TinyPrior(TinyPrior.Parameters(), ndim=2))
    with pytest.raises(InvalidInput, match=r"end in \.safetensors"):
        save_prior(tmp_path / "p.pt", tiny())
    with pytest.raises(FileRefused, match="'mean' holds NaN"):
        save_prior(tmp_path / "p.safetensors", tiny(float("nan")))
    assert list(tmp_path.iterdir()) == []


# --- damage and the previous version --------------------------------------------------------


def test_the_previous_version_is_kept_and_used(saved):
    save_prior(saved, tiny(0.75))
    torch.testing.assert_close(load_prior(backup(saved))[0].mean[0], torch.tensor(0.25))
    saved.write_bytes(saved.read_bytes()[:-9])
    prior, facts = load_prior(saved)
    torch.testing.assert_close(prior.mean[0], torch.tensor(0.25))
    assert "damaged" in facts["notes"][0]
    assert backup(saved).name in facts["notes"][0]


def test_a_missing_file_falls_back_too(saved):
    save_prior(saved, tiny(0.75))
    saved.unlink()
    assert "no such file" in load_prior(saved)[1]["notes"][0]
    backup(saved).unlink()
    with pytest.raises(InvalidInput, match="no such file"):
        load_prior(saved)


def test_a_damaged_file_does_not_push_out_the_good_one(saved):
    save_prior(saved, tiny(0.75))
    saved.write_bytes(saved.read_bytes()[:-9])
    save_prior(saved, tiny(1.0))
    torch.testing.assert_close(load_prior(saved)[0].mean[0], torch.tensor(1.0))
    torch.testing.assert_close(load_prior(backup(saved))[0].mean[0], torch.tensor(0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64])
def test_other_types_of_numbers(saved, dtype):
    state = {"mean": torch.zeros(9).to(dtype), "count": torch.tensor(7)}
    try:
        load_prior(rewritten(saved, state))
    except FileRefused as error:
        assert saved.name in str(error)


def test_both_damaged(saved):
    save_prior(saved, tiny(0.75))
    for path in (saved, backup(saved)):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileRefused, match=r"no good previous version.*\.bak"):
        load_prior(saved)


def test_changed_numbers_are_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(FileRefused, match="checksum"):
        load_prior(saved)


def test_truncations_and_flips_are_always_refused_by_name(tmp_path):
    path = tmp_path / "p.safetensors"
    save_prior(path, tiny())
    good = path.read_bytes()

    @settings(max_examples=200)
    @given(st.integers(0, len(good) - 1), st.integers(1, 255), st.booleans())
    def damaged(place, change, cut):
        content = bytearray(good)
        content[place] ^= change
        path.write_bytes(good[:place] if cut else content)
        try:
            load_prior(path)
        except InvalidInput as error:
            assert "p.safetensors" in str(error)
        else:  # an entry of the header that does not matter to the numbers
            header = content[8 : 8 + int.from_bytes(good[:8], "little")]
            assert not cut
            assert len(content) - place > len(good) - len(header) - 8

    damaged()


# --- other kinds of files -------------------------------------------------------------------


def rewritten(path: Path, state: Mapping[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    """The bundle with other entries in its header, and a checksum that fits the numbers."""
    from napari_invprior.io.bundles import checksum

    state = safetensors.torch.load_file(path) if state is None else dict(state)
    header = read_header(path) | {"sha256": checksum(state)} | changes
    header = {key: value for key, value in header.items() if value != "(gone)"}
    path.write_bytes(safetensors.torch.save(state, metadata={KEY: json.dumps(header)}))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2.*update"),
        ({"format": 0}, "known format"),
        ({"format": "(gone)"}, "format"),
        ({"method": "(gone)"}, "lacks method"),
        ({"method": "tinny"}, "did you mean 'tiny'"),
        ({"method": None}, "unknown prior"),
        ({"parameters": {"patch_sise": 3}}, "unknown key 'patch_sise'.*patch_size"),
        ({"parameters": {"patch_size": 99}}, "patch_size = 99"),
        ({"parameters": [1]}, "parameters"),
        ({"parameters": {"patch_size": 4}}, "needed"),
        ({"ndim": 3}, "needed"),
        ({"ndim": "two"}, "ndim 'two'"),
        ({"ndim": 7}, "ndim 7"),
        ({"channels": 0}, "channels 0"),
    ],
)
def test_headers_that_do_not_fit(saved, changes, words):
    save_prior(saved, tiny(0.75))  # there is a good backup; it must not hide these
    with pytest.raises(FileRefused, match=rf"Prior é\.safetensors.*{words}"):
        load_prior(rewritten(saved, **changes))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"mean": torch.full((9,), torch.nan), "count": torch.tensor(7)}, "'mean' holds NaN"),
        ({"mean": torch.full((9,), torch.inf), "count": torch.tensor(7)}, "'mean' holds"),
        ({"mean": torch.zeros(8), "count": torch.tensor(7)}, "needed"),
        ({"mean": torch.zeros(9)}, "needed"),
    ],
)
def test_numbers_that_do_not_fit(saved, state, words):
    with pytest.raises(FileRefused, match=rf"é\.safetensors.*{words}"):
        load_prior(rewritten(saved, state))


@pytest.mark.parametrize(
    "kind", ["pt", "old pt", "pickle", "joblib", "npy", "npz", "noise", "none"]
)
def test_other_files_are_refused_and_run_no_code(tmp_path, kind):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (ran,)

    path = tmp_path / "p.safetensors"
    if kind == "pt":
        torch.save({"a": Trap()}, path)
    elif kind == "old pt":
        torch.save({"a": Trap()}, path, _use_new_zipfile_serialization=False)
    elif kind in ("pickle", "joblib"):
        path = tmp_path / "p.joblib" if kind == "joblib" else path
        path.write_bytes(pickle.dumps(Trap()))
    elif kind in ("npy", "npz"):
        array = np.array([Trap()], object)
        with path.open("wb") as file:
            (np.save if kind == "npy" else np.savez)(file, array)
    else:
        path.write_bytes(b"" if kind == "none" else bytes(range(256)))
    words = {"npy": "NumPy", "noise": "damaged", "none": "is empty"}.get(kind, "never opened")
    with pytest.raises(FileRefused, match=rf"{path.name}.*{words}"):
        load_prior(path)
    assert not ran.exists()


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "p.safetensors"
    for metadata in (None, {"format": "pt"}, {KEY: "no json"}, {KEY: "[]"}, {KEY: "{}"}):
        path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, metadata=metadata))
        with pytest.raises(FileRefused, match=path.name):
            load_prior(path)


# --- files that promise more than they hold ---------------------------------------------------


def test_a_length_that_begins_like_a_pickle(saved):
    """Every 32nd file has a table whose length begins with the byte of a pickle."""
    for count in range(256):
        save_prior(saved, tiny(), {"padding": "x" * count})
        if saved.read_bytes()[:1] == b"\x80":
            break
    else:
        pytest.fail("no such length came about")
    assert load_prior(saved)[0].is_fitted
    assert read_header(saved)["method"] == "tiny"


@pytest.mark.parametrize("head", [pickle.dumps([1], 4), pickle.dumps({"a": 1}, 2),
                                  b"PK\3\4abcdefg"])
def test_pickles_are_still_refused(saved, head):
    saved.write_bytes(head + bytes(20))
    with pytest.raises(FileRefused, match="may run code"):
        load_prior(saved)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([1], "facts in its header is '\\[1\\]', no table"),
        ("x", "no table"),
        ({"intensity_scale": "ab"}, "intensity_scale .* two numbers are needed"),
        ({"intensity_scale": [1]}, "two numbers"),
        ({"value_range": [True, 2]}, "two numbers"),
        ({"value_range": {"0": 1}}, "two numbers"),
    ],
)
def test_facts_that_are_none(saved, facts, words):
    with pytest.raises(FileRefused, match=words):
        load_prior(rewritten(saved, facts=facts))


@pytest.mark.parametrize("channels", [4097, 10**9, 2**70])
def test_channels_beyond_reason(saved, channels):
    with pytest.raises(FileRefused, match="channels 1 to 4096"):
        load_prior(rewritten(saved, channels=channels))


HUGE = [
    ("patchnr", {"hidden": 4096, "blocks": 20}, 1),
    ("patchnr", {"patch_size": 32, "channels": "joint", "preset": "good"}, 64),
    ("adversarial", {"width": 1024, "patch_size": 32}, 1),
    ("conditional_mmd", {"preset": "paper", "channels": "joint"}, 4096),
    ("wppflow", {"network": "paper"}, 1),
]


@pytest.mark.parametrize(("method", "parameters", "channels"), HUGE)
def test_no_network_is_made_before_its_weights_are_there(
    saved, monkeypatch, method, parameters, channels
):
    """A header of a few bytes may describe a network of gigabytes."""
    given = registry.get("prior", method).parameters(**parameters).model_dump(mode="json")
    state = {
        "factor": torch.full((2,), 16.0), "masked": torch.zeros(1), "border": torch.zeros(2),
        "weights": torch.zeros(3), "layers.0": torch.zeros(3),
    }  # fmt: skip
    path = rewritten(saved, state, method=method, parameters=given, channels=channels)
    made = []

    def watched(true, shape, *args, **kwargs):
        if torch.get_default_device().type != "meta":  # where nothing takes memory
            made.append(shape)
        return true(shape, *args, **kwargs)

    for name in ("zeros", "eye", "randn"):
        monkeypatch.setattr(torch, name, partial(watched, getattr(torch, name)))
    with pytest.raises(FileRefused, match=path.name):
        load_prior(path)
    assert made == []


def test_more_arrays_than_any_prior_has(saved):
    state = {str(n): torch.zeros(1) for n in range(20_001)}
    with pytest.raises(FileRefused, match="20001 arrays"):
        load_prior(rewritten(saved, state))


def test_a_table_of_very_many_bytes(saved):
    saved.write_bytes((17 << 20).to_bytes(8, "little") + b"{" + bytes(100))
    with pytest.raises(FileRefused, match="a table of 17825792 bytes"):
        load_prior(saved)


def test_a_limit_of_the_caller(saved):
    with pytest.raises(FileRefused, match="the limit is 100 bytes"):
        load_prior(saved, limit=100)


def test_no_backup_is_said_shortly(saved):
    saved.write_bytes(saved.read_bytes()[:-3])
    with pytest.raises(FileRefused, match=r"there is no previous version .*\.bak"):
        load_prior(saved)


def test_more_columns_than_rows():
    from napari_invprior.priors.state import check_orthonormal

    with pytest.raises(InvalidInput, match="no more columns than rows"):
        check_orthonormal({"v": torch.zeros(1, 2, 100_000)}, "v", "x")
