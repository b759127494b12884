"""The code in the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from napari_invprior import registry
from napari_invprior.recipes import examples

DOCS = Path(__file__).parents[1] / "docs"


def code_of(page: str) -> str:
    """All Python blocks of a page, in order."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))


def test_add_a_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    namespace: dict[str, Any] = {"__name__": "napari_invprior.priors.from_the_docs"}
    exec(compile(code_of("add-a-prior.md"), "add-a-prior.md", "exec"), namespace)
    assert namespace["outcome"].metrics["psnr"] > 15


def test_every_local_link_leads_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_methods_and_examples_are_documented() -> None:
    text = (DOCS / "methods.md").read_text()
    for method in registry.methods():
        assert f"`{method.name}`" in text, f"docs/methods.md does not name {method.name}"
    for example in examples():
        assert example["name"] in text
