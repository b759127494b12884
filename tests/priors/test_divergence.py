"""A loss that explodes never spoils what was learnt, and ends with advice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.errors import JobError
from napari_invprior.priors import adversarial
from napari_invprior.priors.base import Reference
from napari_invprior.priors.data_networks import energy_training
from tests.laws.test_priors import QUICK, fit, fitted, texture


def learn(prior: Any, seed: int = 2) -> list[str]:
    """Train once more; the warnings."""
    events: list[jobs.Event] = []
    jobs.run(fit(prior, [Reference(texture(2))], seed=seed), events.append)
    return [e.text for e in events if isinstance(e, jobs.Message) and e.level == "warning"]


def failing(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Let the critic's loss be infinite in these steps."""
    real, calls = adversarial.critic_loss, iter(range(10**6))

    def loss(*arguments: Any) -> Any:
        value, gap = real(*arguments)
        return (value * math.inf if next(calls) in steps else value), gap

    monkeypatch.setattr(adversarial, "critic_loss", loss)


def test_the_critic_halves_its_step(monkeypatch: pytest.MonkeyPatch) -> None:  # row 45
    prior = registry.get("prior", "adversarial").cls(
        adversarial.AdversarialParameters(patch_size=4, **QUICK["adversarial"]), ndim=2
    )
    failing(monkeypatch, range(20, 23))
    said = learn(prior)
    assert [text.split("halved to ")[1] for text in said] == ["0.0015", "0.00075", "0.000375"]
    assert bool(torch.isfinite(prior.g(texture(2, seed=4)[None])).all())


def test_the_critic_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:  # row 45
    prior = fitted(registry.get("prior", "adversarial"), 2)
    x = texture(2, seed=4)[None]
    before = prior.g(x)
    failing(monkeypatch, range(5, 10**6))
    with pytest.raises(JobError, match=r"lower learning_rate from 0\.003"):
        learn(prior)
    assert torch.equal(prior.g(x), before)


def test_the_network_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:  # row 45
    prior = fitted(registry.get("prior", "wppnet"), 2)
    y = texture(2, seed=4)[None]
    before = jobs.run(prior.estimate(y))
    monkeypatch.setattr(
        energy_training.PatchEnergy, "__call__",
        lambda self, images, *_: (torch.zeros_like(images), {"residual": math.nan}),
    )
    with pytest.raises(JobError, match="lower learning_rate"):
        learn(prior)
    assert torch.equal(jobs.run(prior.estimate(y)), before)
