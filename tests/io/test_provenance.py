"""What a result says about where it comes from."""

from __future__ import annotations

import getpass
import json
import platform

import numpy as np
import torch

import napari_invprior
from napari_invprior.io.images import image_from_array
from napari_invprior.io.provenance import provenance


def test_versions_inputs_and_facts():
    image = image_from_array(np.zeros((8, 9), np.uint8), name="x")
    record = provenance({"observation": image}, seed=3)
    assert record["versions"]["napari-invprior"] == napari_invprior.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 3
    assert record["inputs"]["observation"] == {
        "name": "x", "shape": [1, 1, 8, 9], "dtype": "uint8", "value_range": [0.0, 255.0],
        "sha256": image.digest(),
    }  # fmt: skip
    changed = image_from_array(np.ones((8, 9), np.uint8), name="x")
    assert provenance({"observation": changed})["inputs"] != record["inputs"]


def test_it_is_plain_and_names_nobody():
    text = json.dumps(provenance())
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text
