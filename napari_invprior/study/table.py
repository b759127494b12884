"""The table of a study: its columns, its rows, intervals over images."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from napari_invprior.study.bootstrap import mean_interval, paired_interval

Status = Literal["done", "failed", "cancelled"]


@dataclass(frozen=True)
class Column:
    """One figure of every row.

    Attributes
    ----------
    key : str
        Key in a row's figures.
    label, about : str
        Head of the column and what it means.
    digits : int
        Digits shown: decimal places, or significant ones where ``significant`` is set.
    better : {"high", "low", ""}
        Which end is the better one; empty where neither is.
    significant : bool
        See ``digits``.
    """

    key: str
    label: str
    about: str
    digits: int
    better: Literal["high", "low", ""] = ""
    significant: bool = False

    def text(self, value: float | None) -> str:
        """A figure as people read it; a dash for none.

        Examples
        --------
        >>> COLUMNS[0].text(29.7123), COLUMNS[0].text(None)
        ('29.71', '–')
        """
        if value is None or math.isnan(value):
            return "–"
        return f"{value:.{self.digits}{'g' if self.significant else 'f'}}"


COLUMNS = (
    Column("psnr", "PSNR / dB", "Peak signal-to-noise ratio against the truth.", 2, "high"),
    Column("ssim", "SSIM", "Structural similarity to the truth.", 3, "high"),
    Column("lpips", "LPIPS", "Perceptual distance to the truth (package lpips).", 3, "low"),
    Column("patch_w2", "patch W2",
           "Squared Wasserstein distance between the patches of the result and those of the "
           "references, less what two draws of one texture are apart; asks for no truth.", 3,
           "low"),
    Column("residual_ratio", "misfit / noise",
           "Mean squared misfit to the data over the noise variance; 1 fits just to the noise.", 2),
    Column("training_seconds", "train / s",
           "Seconds to train the prior; methods that share one show the same.", 1, "low"),
    Column("seconds", "time / s", "Seconds to find the weight and to reconstruct.", 1, "low"),
    Column("peak_memory_mb", "memory / MB",
           "Most memory in use while training and reconstructing, above that before.", 0, "low"),
    Column("weight", "weight", "Weight of the prior against the data.", 3, significant=True),
)
PER_IMAGE = ("psnr", "ssim", "lpips")
"""Figures that every image has; with several images they come with an interval."""


@dataclass(frozen=True)
class Row:
    """What one method reached.

    Attributes
    ----------
    name, title : str
        Name of its layer; title for people.
    kind : str
        ``"method"`` or ``"baseline"``.
    status : {"done", "failed", "cancelled"}
        Only what is done has figures.
    reason : str
        Why there are none.
    figures : mapping of str to float
        By the keys of `COLUMNS`.
    images : mapping of str to list of float
        Those of `PER_IMAGE`, image by image.
    intervals : mapping of str to (float, float)
        95 % bootstrap interval over images.
    behind_best : mapping of str to (float, float, float)
        Mean difference to the best row, image by image, and its interval.
    """

    name: str
    title: str
    kind: str = "method"
    status: Status = "done"
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, list[float]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    behind_best: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; figures that are no numbers are left out."""
        data: dict[str, Any] = {"name": self.name, "title": self.title, "kind": self.kind,
                                "status": self.status}
        if self.reason:
            data["reason"] = self.reason
        data |= {key: value for key, value in self.figures.items() if math.isfinite(value)}
        if self.intervals:
            data["images"] = {key: list(values) for key, values in self.images.items()}
            data["intervals"] = {key: list(pair) for key, pair in self.intervals.items()}
            data["behind_best"] = {key: list(three) for key, three in self.behind_best.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """The row that `to_dict` describes.

        Examples
        --------
        >>> row = Row("epll", "EPLL", figures={"psnr": 30.0})
        >>> Row.from_dict(row.to_dict()) == row
        True
        """
        return cls(
            data["name"], data["title"], data["kind"], data["status"], data.get("reason", ""),
            {column.key: data[column.key] for column in COLUMNS if column.key in data},
            data.get("images", {}),
            {key: tuple(pair) for key, pair in data.get("intervals", {}).items()},
            {key: tuple(three) for key, three in data.get("behind_best", {}).items()},
        )

    def text(self, column: Column) -> str:
        """A figure with its interval where there is one."""
        shown = column.text(self.figures.get(column.key))
        if column.key in self.intervals:
            low, high = self.intervals[column.key]
            shown += f" ({column.text(low)}–{column.text(high)})"
        return shown


def best(rows: Sequence[Row], column: Column) -> Row | None:
    """The row that wins a column; None where the column has no better end or no figures."""
    having = [row for row in rows if math.isfinite(row.figures.get(column.key, math.nan))]
    if not having or not column.better:
        return None
    sign = 1 if column.better == "high" else -1
    return max(having, key=lambda row: sign * row.figures[column.key])


def shown_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns in which some row has a figure."""
    return tuple(
        c for c in COLUMNS if any(math.isfinite(r.figures.get(c.key, math.nan)) for r in rows)
    )


def with_intervals(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """The rows with bootstrap intervals over images, where there are several images."""
    columns = [column for column in COLUMNS if column.key in PER_IMAGE]
    winners = {column.key: best(rows, column) for column in columns}
    found = []
    for row in rows:
        intervals, behind = {}, {}
        for key, values in row.images.items():
            own, winner = mean_interval(values, seed=seed), winners[key]
            if own is None or winner is None:
                continue
            intervals[key] = own.low, own.high
            gap = paired_interval(values, winner.images[key], seed=seed)
            assert gap is not None
            behind[key] = gap.mean, gap.low, gap.high
        found.append(replace(row, intervals=intervals, behind_best=behind))
    return found


def as_csv(rows: Sequence[Row]) -> str:
    """One line per row: every column, with ``_low`` and ``_high`` where there are intervals."""
    columns = shown_columns(rows)
    having = [c.key for c in columns if any(c.key in row.intervals for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["title", "kind", "status", "reason"]
    for column in columns:
        head += [column.key, *([f"{column.key}_low", f"{column.key}_high"]
                               if column.key in having else [])]
    writer.writerow(head)
    for row in rows:
        line: list[Any] = [row.title, row.kind, row.status, row.reason]
        for column in columns:
            line.append(row.figures.get(column.key, ""))
            if column.key in having:
                line += row.intervals.get(column.key, ("", ""))
        writer.writerow(line)
    return text.getvalue()
