"""Small pieces that every panel is made of: sections, buttons, lists, choosers of a method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from napari_invprior import registry
from napari_invprior.app.widgets.fields import fields
from napari_invprior.app.widgets.forms import Form, LayerNames
from napari_invprior.errors import InvalidInput

FAULT = "#e0605a"
GOOD = "#3a9c69"
"""Colours that are readable in napari's dark and light theme."""


def row(*items: QWidget | str | int, spacing: int = 4) -> QHBoxLayout:
    """Widgets side by side; a string becomes a label, a number a stretch."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    for item in items:
        if isinstance(item, int):
            layout.addStretch(item)
        elif isinstance(item, str):
            layout.addWidget(QLabel(item))
        else:
            layout.addWidget(item)
    return layout


def push(
    text: str, tooltip: str, clicked: Callable[[], Any], *, checkable: bool = False
) -> QPushButton:
    """A push button that is no wider than its text needs."""
    button = QPushButton(text)
    button.setToolTip(tooltip)
    button.setCheckable(checkable)
    button.clicked.connect(lambda _=False: clicked())
    button.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
    button.setMinimumWidth(28)
    return button


class Picker(QComboBox):
    """A list that keeps its choice when its entries change, and never forces the dock wide."""

    def __init__(self, tooltip: str, changed: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.setToolTip(tooltip)
        self.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.setMinimumContentsLength(4)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._decided = False
        self.activated.connect(lambda _: self._decide())
        if changed is not None:
            self.currentIndexChanged.connect(lambda _: changed())

    def _decide(self) -> None:
        self._decided = True

    def wheelEvent(self, event: Any) -> None:  # noqa: N802
        """Scroll the dock, do not change the choice by accident."""
        event.ignore()

    def offer(
        self, entries: Sequence[tuple[str, Any]], wanted: Any = None, *, keep: bool = True
    ) -> None:
        """Replace the entries (text, value); signals only when the chosen value changes.

        Parameters
        ----------
        entries : sequence
            Texts and values.
        wanted : object
            What to choose where the user has not.
        keep : bool
            Whether the present choice goes before ``wanted`` even if the user did not make it.
        """
        before = self.currentData()
        there = before in [value for _, value in entries]
        self._decided &= there
        kept = before if there and (keep or self._decided) else wanted
        self.blockSignals(True)
        self.clear()
        for text, value in entries:
            self.addItem(text, value)
        index = next((i for i, (_, value) in enumerate(entries) if value == kept), 0)
        self.setCurrentIndex(index if entries else -1)
        self.blockSignals(False)
        if self.currentData() != before:
            self.currentIndexChanged.emit(self.currentIndex())

    def choose(self, value: Any) -> bool:
        """Choose by value; False when it is not offered."""
        index = next((i for i in range(self.count()) if self.itemData(i) == value), -1)
        if index >= 0:
            self._decide()
            self.setCurrentIndex(index)
        return index >= 0


class Line(QLabel):
    """One line of text whose height is always taken, so that nothing jumps; full text on hover."""

    def __init__(self, tooltip: str, lines: int = 1) -> None:
        super().__init__()
        self._about, self._lines = tooltip, lines
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.PlainText)  # layer names are never taken for HTML
        self.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.say("")

    def _least(self) -> int:
        padding = 4 if self._lines == 1 else 12  # napari's style pads labels
        return self._lines * self.fontMetrics().lineSpacing() + padding

    def heightForWidth(self, width: int) -> int:  # noqa: N802
        """Room for the lines that are always taken; more only for a long text."""
        return max(self._least(), super().heightForWidth(width))

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """As wide as there is room."""
        return QSize(20, self._least())

    def say(self, text: str, colour: str = "") -> None:
        """Show a sentence; ``colour`` marks a fault or a success."""
        if text != self.text() or not self.toolTip():
            self.setText(text)
            self.setToolTip(f"{text}\n\n{self._about}" if text else self._about)
        if colour != self.property("tone"):  # a style sheet costs milliseconds
            self.setProperty("tone", colour)
            self.setStyleSheet(f"color: {colour};" if colour else "")


class Sentence(QElidingLabel):
    """One line that never wraps; what does not fit is read on hover."""

    def __init__(self, tooltip: str) -> None:
        super().__init__()
        self._about = tooltip
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setFixedHeight(self.fontMetrics().height() + 4)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.say("")

    def say(self, text: str, colour: str = "", earlier: Sequence[str] = ()) -> None:
        """Show a sentence; earlier ones are read on hover."""
        self.setText(text)
        before = ["Before:", *earlier] if earlier else []
        self.setToolTip("\n\n".join(part for part in (text, self._about, *before) if part))
        self.setStyleSheet(f"color: {colour};" if colour else "")


class Section(QFrame):
    """One step of the dock: number, title and main choice on the first line."""

    def __init__(self, number: int, title: str, *head: QWidget) -> None:
        super().__init__()
        self.title = QLabel(f"{number}  {title}")
        font = self.title.font()
        font.setBold(True)
        self.title.setFont(font)
        self.title.setMinimumWidth(96)
        self.box = QVBoxLayout(self)
        self.box.setContentsMargins(5, 1, 5, 1)
        self.box.setSpacing(1)
        self.box.addLayout(row(self.title, *head))
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)


SHARED = frozenset({
    "patch_size", "channels", "scales", "reference_patches", "centred", "symmetries", "blur",
    "blur_sigma", "kernel_size", "psf", "gain", "offset", "boundary", "weight_rule", "stride",
    "box",
})
"""Parameters that mean the same in every method that has them: they stay when it is switched.

Steps, rates and the like have one name but other sizes in each method.
"""


class MethodChooser(QWidget):
    """A list of the registered methods of one kind, a gear, and the form of the chosen one.

    Parameters
    ----------
    kind : str
        ``"physics"``, ``"noise"``, ``"prior"`` or ``"solver"``.
    tooltip : str
        What is chosen.
    layers : callable
        Names of layers for fields that take one.
    leave_out : sequence of str
        Fields with a control of their own elsewhere.
    folded : bool
        Fold the whole form under the gear.
    inline : bool
        Show a form of one field in `beside`, which has its place in a row.
    """

    changed = Signal()

    def __init__(
        self, kind: str, tooltip: str, *, layers: LayerNames = list,
        leave_out: Sequence[str] = (), folded: bool = False, inline: bool = False,
    ) -> None:
        super().__init__()
        self._folded, self._inline = folded, inline
        self._kind, self._layers, self._leave_out = kind, layers, leave_out
        self._ndim = 2
        self._proposed: str | None = None
        self._forms: dict[tuple[str, int], Form] = {}
        self._form: Form | None = None
        self.list = Picker(tooltip, self._on_method)
        self.gear = QToolButton(text="⚙", checkable=True, autoRaise=True)
        self.gear.setToolTip("Show or hide the options that are seldom needed.")
        self.gear.toggled.connect(self._fold)
        self._holder = QVBoxLayout(self)
        self._holder.setContentsMargins(0, 0, 0, 0)
        self.beside = QWidget()
        self._within_row = QVBoxLayout(self.beside)
        self._within_row.setContentsMargins(0, 0, 0, 0)
        self._offer()
        self._on_method()

    @property
    def name(self) -> str:
        """Name of the chosen method."""
        return str(self.list.currentData())

    @property
    def method(self) -> registry.Method:
        """The chosen method."""
        return registry.get(self._kind, self.name)

    @property
    def ndim(self) -> int:
        """Space axes that the form is for."""
        return self._ndim

    @property
    def form(self) -> Form:
        """The form of the chosen method."""
        assert self._form is not None
        return self._form

    def set_dimensions(self, ndim: int) -> None:
        """Data of another number of axes: its default method, and one control per axis.

        A method that was chosen by hand stays.
        """
        if ndim != self._ndim:
            self._ndim = ndim
            self._offer()
            self._on_method()

    def propose(self, name: str) -> None:
        """Choose a method unless one was chosen by hand."""
        self._proposed = name
        self._offer()

    def _offer(self) -> None:
        """The methods for data of this many axes; the default where the user chose none."""
        fitting = [m for m in registry.methods(self._kind) if self._ndim in m.dimensions]
        proposed = self._proposed or registry.default(self._kind, self._ndim).name
        self.list.offer([(m.title, m.name) for m in fitting], proposed, keep=False)

    def _on_method(self) -> None:
        if self.list.currentData() is None:
            return
        key, left = (self.name, self._ndim), self._form
        if key not in self._forms:
            short = self._inline and len(fields(self.method.parameters)) <= 1
            form = Form(
                self.method.parameters, ndim=self._ndim, layers=self._layers,
                leave_out=self._leave_out, folded=self._folded, inline=short,
            )
            form.changed.connect(self.changed)
            self._forms[key] = form
            (self._within_row if short else self._holder).addWidget(form)
        for other, form in self._forms.items():
            form.setVisible(other == key)
        self.beside.setVisible(self._within_row.indexOf(self._forms[key]) >= 0)
        self._form = self._forms[key]
        if left is not None and left is not self._form and left.ndim == self._ndim:
            with contextlib.suppress(InvalidInput):  # a form with a fault hands nothing over
                changed = left.chosen()
                self._form.take_over({k: changed[k] for k in SHARED & changed.keys()})
        self._form.refresh_layers()
        self.gear.setVisible(self._form.has_advanced)
        self._fold(self.gear.isChecked())
        self.list.setToolTip(self.method.summary)
        self.changed.emit()

    def _fold(self, shown: bool) -> None:
        self.form.show_advanced(shown)

    def choice(self) -> dict[str, Any]:
        """Plain data for a recipe; raises `InvalidInput`."""
        return {"kind": self.name} | self.form.chosen()

    def choose(self, choice: Mapping[str, Any]) -> None:
        """Show the choice of a recipe."""
        if not self.list.choose(choice["kind"]):
            raise InvalidInput(f"there is no {self._kind} {choice['kind']!r}")
        self.form.set_values({k: v for k, v in choice.items() if k != "kind"})

    def refresh_layers(self) -> None:
        """Offer the layers that exist now."""
        self.form.refresh_layers()
