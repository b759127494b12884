"""The recipe language: round trips, refusals by name, random input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_invprior import recipes, registry
from napari_invprior.errors import InvalidInput
from napari_invprior.recipes.model import Recipe

PLAIN = {
    "observation": {"sample": "gravel-test"},
    "references": [{"sample": "gravel-reference", "regions": [[[0, 64], [0, 64]]]}],
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
keys = st.sampled_from(sorted(Recipe.model_fields))


@given(st.dictionaries(keys | st.text(max_size=6), json_values, max_size=6))
def test_random_recipes_are_read_or_refused(data: dict[str, Any]) -> None:
    try:
        recipe = recipes.parse(data)
    except InvalidInput as error:
        assert "\n" not in str(error)
        assert str(error)
    else:
        assert recipes.parse(recipe.to_dict()) == recipe


@given(st.text(max_size=60))
def test_random_text_is_refused(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(InvalidInput, match="not JSON"):
            recipes.parse(text)


@given(keys, json_values)
def test_one_spoiled_key_is_refused_with_its_name(key: str, value: Any) -> None:
    try:
        recipe = recipes.parse(PLAIN | {key: value})
    except InvalidInput as error:
        text = str(error)
        assert text.startswith("recipe")
    else:
        assert recipes.parse(json.dumps(recipe.to_dict())) == recipe


@st.composite
def within_bounds(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """A method with one number moved to a bound that its schema states."""
    method = draw(st.sampled_from(registry.methods(kind)))
    schema = method.parameters.model_json_schema()
    data: dict[str, Any] = {"kind": method.name}
    numbers = {
        name: [s for s in facts.get("anyOf", [facts]) if "minimum" in s or "maximum" in s]
        for name, facts in schema["properties"].items()
    }
    bounded = {name: found[0] for name, found in numbers.items() if found}
    if bounded:
        name = draw(st.sampled_from(sorted(bounded)))
        limits = [bounded[name][k] for k in ("minimum", "maximum") if k in bounded[name]]
        value = draw(st.sampled_from(limits))
        data[name] = int(value) if bounded[name]["type"] == "integer" else float(value)
    return data


@pytest.mark.parametrize("kind", ["physics", "noise", "prior", "solver", "flow"])
@given(data=st.data())
def test_every_method_accepts_its_bounds(kind: str, data: st.DataObject) -> None:
    chosen = data.draw(within_bounds(kind))
    recipe = recipes.parse(PLAIN | {kind: chosen})
    assert recipe.to_dict().get(kind, chosen)["kind"] == chosen["kind"]
    assert recipes.parse(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observaton": {}}, "did you mean 'observation'"),
        ({"physics": {"kind": "superresolutoin"}}, "did you mean 'superresolution'"),
        ({"physics": {"kind": "superresolution", "facto": 2}}, "did you mean 'factor'"),
        ({"physics": {"kind": "superresolution", "factor": 2.5}}, "factor"),
        ({"physics": {"kind": "superresolution", "factor": 17}}, "less than or equal to 16"),
        ({"physics": {"kind": "superresolution", "factor": 0}}, "factor"),
        ({"noise": {"kind": "gaussian", "sigma": -0.1}}, "greater than or equal to 0"),
        ({"noise": {"kind": "gaussian", "sigma": float("nan")}}, "sigma"),
        ({"solver": {"kind": "variational", "weight": -1}}, "weight"),
        ({"seed": -1}, "seed"),
        ({"version": 2}, "version"),
        ({"references": [{"sample": "gravel", "regions": [[[5, 2], [0, 9]]]}]}, "empty"),
        ({"observation": {"path": "a", "layer": "b"}}, "exactly one"),
        ({"observation": None}, "observation"),
        ({"zero_shot": True}, "zero_shot"),
        ({"prior": None}, "prior"),
    ],
)
def test_refusals_name_the_fault(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match="^recipe.*" + words.replace("'", "'")):
        recipes.parse(PLAIN | change)


def test_settings_replace_dotted_keys() -> None:
    recipe = recipes.parse(PLAIN).with_settings(
        {"prior.patch_size": 8, "physics": {"kind": "blur"}, "seed": 7}
    )
    assert recipe.prior.parameters.patch_size == 8
    assert recipe.physics.name == "blur"
    assert recipe.seed == 7
    with pytest.raises(InvalidInput, match="did you mean 'patch_size'"):
        recipes.parse(PLAIN).with_settings({"prior.patchsize": 8})


def test_every_example_is_valid_and_its_script_compiles() -> None:
    listed = recipes.examples()
    assert {e["name"] for e in listed} >= {
        "patchnr-superresolution",
        "patchnr-superresolution-3d",
        "patchnr-inpainting",
        "patchnr-deblurring",
        "patchnr-zero-shot",
    }
    for example in listed:
        recipe = recipes.load_example(example["name"])
        assert example["title"]
        assert example["papers"]
        compile(recipes.script(recipe), "script.py", "exec")
    with pytest.raises(InvalidInput, match="did you mean"):
        recipes.load_example("patchnr-inpaintin")


def test_a_script_is_handed_every_layer_that_its_recipe_reads() -> None:
    names = ("seen", "true", "start", "good", "painted", "poor")
    text = recipes.script(recipes.parse({
        "task": "sample", "prior": "gmm", "observation": {"layer": "seen"},
        "truth": {"layer": "true"}, "initial": {"layer": "start"},
        "references": [
            {"layer": "good", "labels": {"layer": "painted"}, "pair": {"layer": "poor"}},
        ],
    }))
    listed = next(line for line in text.splitlines() if line.startswith("arrays"))
    assert all(repr(name) in listed for name in names)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"seed": ' + "9" * 5000 + "}", "the recipe is not JSON: .*5000 digits"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[1]", "a recipe is a JSON object, not list"),
        ("{}" + " " * (16 << 20), "16777218 characters; at most 16777216 are read"),
        ('{"observation": {"layer": "x"}, "references": [' + "0," * 100_001 + "0]}",
         "recipe.references has 100002 entries; at most 100000 are possible"),
        ('{"observation": {"layer": "x"}, "references": [' + "0," * 9000 + "0]}",
         (r"^recipe\.references\.0 = 0: input should be a valid dictionary or instance of "
          r"ReferenceSource$")),
    ],
)  # fmt: skip
def test_texts_that_are_no_recipe(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        recipes.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": {"layer": 1}},
         "recipe.observation.layer = 1: input should be a valid string"),
        ({"observation": {"x": 1}}, "recipe: unknown key 'observation.x'"),
        ({"observation": {"simulate_from": {"layer": "x", "y": 1}}},
         "recipe: unknown key 'observation.simulate_from.y'; did you mean 'key'?"),
        ({"observation": {"layer": "x", "path": "y"}},
         ("recipe.observation = {'layer': 'x', 'path': 'y'}: give exactly one of 'path', 'layer', "
          "'sample' (given: ['path', 'layer'])")),
        ({"points": {"positions": [[1, 2], ["x", 3], ["y", 4]]}},
         ("recipe.points.positions.1.0 = 'x': input should be a valid number, unable to parse "
          "string as a number")),
        ({f"key{n}": n for n in range(9)}, "; ".join(
            [f"recipe: unknown key 'key{n}'" for n in range(6)] + ["and 3 more"])),
    ],
)  # fmt: skip
def test_messages_name_the_nearest_fault(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        recipes.parse(PLAIN | change)
    assert str(error.value) == message


def test_messages_are_one_printable_line() -> None:
    with pytest.raises(InvalidInput) as error:
        recipes.parse(PLAIN | {"a\nb\x1b[31m\u202e\ud800": 1, "k" * 5000: 2})
    text = str(error.value)
    assert text.isprintable()
    assert len(text) <= 1000
    text.encode()
