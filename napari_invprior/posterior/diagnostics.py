"""May the chains be believed? R-hat and effective sample size of traces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GOOD_RHAT = 1.1
"""Largest R-hat (of the worst twentieth of what is watched) that raises no doubt."""
GOOD_ESS = 50
"""Smallest effective number of samples (median of what is watched) that raises no doubt."""
TRACED, FEWEST_DRAWS = 2**22, 64
"""Numbers that traces hold at most, but at least so many draws of each quantity in each chain."""


def split_rhat(traces: np.ndarray) -> np.ndarray:
    """Potential scale reduction of each quantity, with every chain cut in halves.

    Parameters
    ----------
    traces : numpy.ndarray
        (chains, draws, quantities), at least four draws.

    Returns
    -------
    numpy.ndarray
        About one where all halves agree; one where nothing moves and all chains agree.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> bool(split_rhat(rng.normal(size=(4, 500, 3))).max() < 1.02)
    True
    """
    half = traces.shape[1] // 2
    parts = np.concatenate([traces[:, :half], traces[:, -half:]]).astype(np.float64)
    within = parts.var(axis=1, ddof=1).mean(0)
    between = parts.mean(axis=1).var(axis=0, ddof=1)
    still = within <= np.finfo(np.float64).tiny
    ratio = np.divide(between, within, out=np.zeros_like(within), where=~still)
    ratio[still & (between > 0)] = np.inf
    found: np.ndarray = np.sqrt((half - 1) / half + ratio)
    return found


def effective_samples(traces: np.ndarray) -> np.ndarray:
    """Independent draws that the correlated ones are worth, for each quantity.

    ``K N / (1 + 2 sum rho_t)``, with the autocorrelations of all chains and the variance between
    them, summed in pairs while these are positive and falling (Geyer's initial monotone sequence).

    Parameters
    ----------
    traces : numpy.ndarray
        (chains, draws, quantities), at least four draws.
    """
    chains, draws, _ = traces.shape
    centred = traces.astype(np.float64) - traces.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * draws, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum, axis=1)[:, :draws].mean(0) / draws
    within = covariance[0] * draws / (draws - 1)
    total = covariance[0].copy()
    if chains > 1:
        total += traces.mean(axis=1).astype(np.float64).var(axis=0, ddof=1)
    safe = np.where(total > 0, total, 1.0)
    rho = 1 - (within - covariance) / safe
    rho[0] = 1.0
    even = draws - draws % 2
    pairs = rho[0:even:2] + rho[1:even:2]
    positive = np.cumprod(pairs > 0, axis=0)
    pairs = np.minimum.accumulate(pairs, axis=0) * positive
    time = np.maximum(2 * pairs.sum(0) - 1, 1 / np.log10(max(chains * draws, 10)))
    return np.where(total > 0, chains * draws / time, np.nan)


@dataclass(frozen=True)
class Convergence:
    """What is known about how well chains have mixed.

    Attributes
    ----------
    ess, worst_ess : float
        Median and lower twentieth of the effective samples of the watched quantities.
    rhat : float
        Upper twentieth of their R-hat.
    chains, states : int
        Parallel chains; states of all of them after warm-up.
    """

    ess: float
    worst_ess: float
    rhat: float
    chains: int
    states: int

    @classmethod
    def of(cls, traces: np.ndarray, states: int | None = None) -> Convergence:
        """Judge traces (chains, draws, quantities); with fewer than four draws nothing is known.

        ``states`` says how many there were before the traces were thinned.
        """
        chains, draws = traces.shape[:2]
        states = states or chains * draws
        if draws < 4:
            return cls(0.0, 0.0, np.inf, chains, states)
        ess = effective_samples(traces)
        ess = ess[np.isfinite(ess)]
        rhat = split_rhat(traces)
        if not len(ess):  # nothing moved at all
            return cls(0.0, 0.0, float(np.quantile(rhat, 0.95)), chains, states)
        return cls(
            float(np.median(ess)), float(np.quantile(ess, 0.05)),
            float(np.quantile(rhat, 0.95)), chains, states,
        )

    @property
    def doubts(self) -> tuple[str, ...]:
        """Sentences on why the result should not be trusted yet; none when all is well."""
        found = []
        if not self.rhat <= GOOD_RHAT:
            found.append(
                f"the chains disagree (R-hat {self.rhat:.2f}; up to {GOOD_RHAT} is good): run more "
                "steps, and do not trust differences between the samples yet"
            )
        if self.ess < GOOD_ESS:
            found.append(
                f"the samples are worth {self.ess:.0f} independent ones ({GOOD_ESS} are good): the "
                "standard deviation is rough; run more steps"
            )
        return tuple(found)

    def figures(self) -> dict[str, float]:
        """Plain numbers for metrics and curves."""
        return {"ess": self.ess, "worst_ess": self.worst_ess, "rhat": self.rhat}


class Traces:
    """Values of some quantities along the chains, in bounded memory.

    When it is full, every second draw is dropped, and from then on every second one is added.

    Parameters
    ----------
    chains, quantities : int
        Numbers in one draw.
    capacity : int, optional
        Draws that are held at most, even.

    Examples
    --------
    >>> traces = Traces(chains=2, quantities=1, capacity=4)
    >>> for value in range(9):
    ...     traces.add(np.full((2, 1), value))
    >>> traces.values[0, :, 0].tolist()
    [0.0, 4.0, 8.0]
    """

    def __init__(self, chains: int, quantities: int, capacity: int | None = None) -> None:
        most = max(FEWEST_DRAWS, TRACED // (chains * quantities) // 2 * 2)
        self._capacity = capacity or most
        self._values = np.empty((min(64, self._capacity), chains, quantities), np.float32)
        self._count = self._seen = 0
        self._every = 1

    def add(self, values: np.ndarray) -> None:
        """Append the present values, (chains, quantities)."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        if self._count == self._capacity:
            self._count //= 2
            self._values[: self._count] = self._values[::2][: self._count]
            self._every *= 2
        elif self._count == len(self._values):
            more = min(self._count, self._capacity - self._count)
            self._values = np.concatenate([self._values, np.empty_like(self._values[:more])])
        self._values[self._count] = values
        self._count += 1

    @property
    def values(self) -> np.ndarray:
        """The draws that are held, (chains, draws, quantities)."""
        return self._values[: self._count].swapaxes(0, 1)
