"""A form for any parameter model: one control per field, with tooltip, unit, bounds and reset."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from magicgui.widgets import create_widget
from qtpy.QtCore import QLocale, Signal
from qtpy.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_invprior.app.widgets.fields import Field, fields
from napari_invprior.errors import InvalidInput
from napari_invprior.parameters import Parameters, validate

LayerNames = Callable[[], list[str]]
LABEL_WIDTH = 74
SMALLEST_STEP = 0.001
"""Step of the finest spin box; smaller numbers are typed."""


class Editor(Protocol):
    """What a control can do."""

    widget: QWidget

    def get(self) -> Any:
        """The value as plain data; raises `InvalidInput`."""

    def set(self, value: Any) -> None:
        """Show a value."""


def _control(kind: type, value: Any, field: Field, **options: Any) -> Any:
    """One magicgui control that speaks no local dialect of numbers."""
    control = create_widget(
        value=value, annotation=kind, name=field.name, gui_only=True, options=options
    )
    control.native.setLocale(QLocale.c())
    control.native.setToolTip(field.tooltip)
    control.native.setMinimumWidth(48)
    return control


def _list(field: Field, choices: Any, none: str | None) -> Any:
    """A list of choices, with words for "nothing chosen" where that is allowed."""
    control = _control(
        str, field.default, field, widget_type="ComboBox", choices=choices,
        nullable=none is not None,
    )
    if none is not None:
        control.null_string = none
        control.reset_choices()
    return control


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _number(field: Field, value: float) -> Any:
    """A spin box within the bounds of the field."""
    if field.kind == "int":
        low, high = field.low or 0, 10**9 if field.high is None else field.high
        return _control(int, int(value), field, min=int(low), max=int(high))
    size = abs(value) or 1.0
    step = SMALLEST_STEP if size < 0.1 else 0.01 if size < 1 else 0.1
    low = -1e9 if field.low is None else field.low + (step if field.open_low else 0)
    return _control(
        float, value, field, min=low, max=1e9 if field.high is None else field.high, step=step
    )


class ValueEditor:
    """A check box, spin box or list of choices."""

    def __init__(self, field: Field, changed: Callable[[], None]) -> None:
        if field.kind == "choice":
            words = {True: "yes", False: "no"}
            shown = [(words.get(c, str(c)), c) for c in field.choices]
            self.control = _list(field, shown, "automatic" if field.optional else None)
        elif field.kind == "bool":
            self.control = _control(bool, field.default, field)
            self.control.native.setText("")  # the label stands before it
        else:
            self.control = _number(field, field.default)
        self.widget = self.control.native
        self.control.changed.connect(lambda _: changed())

    def get(self) -> Any:
        return self.control.value

    def set(self, value: Any) -> None:
        self.control.value = value


class TextEditor:
    """A line that may stay empty ("automatic") or hold one number per axis."""

    def __init__(self, field: Field, changed: Callable[[], None]) -> None:
        self.field = field
        self.control = _control(str, field.text(field.default), field)
        self.widget = self.control.native
        self.widget.setMinimumWidth(96)
        self.hint(field.empty if field.optional else "")
        self.control.changed.connect(lambda _: changed())

    def get(self) -> Any:
        return self.field.parse(self.control.value or "")

    def set(self, value: Any) -> None:
        self.control.value = self.field.text(value)

    def hint(self, text: str) -> None:
        """Grey text shown while the line is empty."""
        self.widget.setPlaceholderText(text)


class AxesEditor:
    """One spin box for all axes, or one per axis after a click on the link button."""

    def __init__(self, field: Field, changed: Callable[[], None], ndim: int) -> None:
        self.field, self.changed = field, changed
        self.widget = QWidget()
        layout = QHBoxLayout(self.widget)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        self.boxes = [_number(field, _first(field.default)) for _ in range(ndim)]
        for box in self.boxes:
            layout.addWidget(box.native, 1)
            box.changed.connect(lambda _: changed())
        self.split = QPushButton("per axis", checkable=True)
        self.split.setMaximumWidth(62)
        self.split.setToolTip(f"Choose {field.label} for each axis on its own.")
        self.split.toggled.connect(self._show)
        layout.addWidget(self.split)
        self.set(field.default)

    def _show(self, split: bool) -> None:
        for box in self.boxes[1:]:
            box.native.setVisible(split)
            if split:
                box.value = self.boxes[0].value
        self.changed()

    def get(self) -> Any:
        values = [box.value for box in self.boxes]
        return values if self.split.isChecked() else values[0]

    def set(self, value: Any) -> None:
        several = isinstance(value, list | tuple)
        if several and len(value) != len(self.boxes):
            raise InvalidInput(
                f"{self.field.label} = {tuple(value)}: the data has {len(self.boxes)} axes"
            )
        self.split.setChecked(several)
        for box, number in zip(
            self.boxes, value if several else [value] * len(self.boxes), strict=True
        ):
            box.value = number
        for box in self.boxes[1:]:
            box.native.setVisible(several)


class LayerEditor:
    """A list of the viewer's layers."""

    def __init__(self, field: Field, changed: Callable[[], None], names: LayerNames) -> None:
        self.names = names
        self.control = _list(field, self._choices, "choose a layer")
        self.widget = self.control.native
        self.control.changed.connect(lambda _: changed())

    def _choices(self, _: Any = None) -> list[tuple[str, str]]:
        return [(name, name) for name in self.names()]

    def refresh(self) -> None:
        """Offer the layers that exist now."""
        kept = self.control.value
        self.control.reset_choices()
        if kept in self.names():
            self.control.value = kept

    def get(self) -> Any:
        return None if self.control.value is None else {"layer": self.control.value}

    def set(self, value: Any) -> None:
        name = value.get("layer") if isinstance(value, Mapping) else value
        self.control.value = name if name in self.names() else None


class Form(QWidget):
    """Controls for every field of a parameter model.

    Parameters
    ----------
    model : type[Parameters]
        The declaration.
    ndim : int
        Number of boxes of a "per axis" control.
    layers : callable
        Names of the layers that a `Source` field may take.
    leave_out : sequence of str
        Fields that have a control of their own elsewhere.
    folded : bool
        Fold every field, not only those that are declared as advanced.
    inline : bool
        For a form of one field within a row: no unit, no column of labels.
    """

    changed = Signal()

    def __init__(
        self,
        model: type[Parameters],
        *,
        ndim: int = 2,
        layers: LayerNames = list,
        leave_out: Sequence[str] = (),
        folded: bool = False,
        inline: bool = False,
    ) -> None:
        super().__init__()
        self._inline = inline
        self.parameters, self.ndim, self._layers = model, ndim, layers
        self.editors: dict[str, Editor] = {}
        self._fields = {field.name: field for field in fields(model) if field.name not in leave_out}
        self._folded = {f.name for f in self._fields.values() if f.advanced or folded}
        self._resets: dict[str, QToolButton] = {}
        main = QVBoxLayout(self)
        main.setContentsMargins(0, 0, 0, 0)
        main.setSpacing(0)
        self.advanced = QWidget()
        self._grids: list[QGridLayout] = []
        for holder, hidden in ((QWidget(), False), (self.advanced, True)):
            shown = [f for f in self._fields.values() if (f.name in self._folded) == hidden]
            self._grids.append(self._fill(holder, shown))
            main.addWidget(holder)
            holder.setVisible(bool(shown) and not hidden)
        self.fault = QLabel(wordWrap=True, objectName="fault")
        self.fault.setToolTip("What is wrong with the values above.")
        self.fault.hide()
        main.addWidget(self.fault)
        self._on_changed()

    def _fill(self, holder: QWidget, shown: list[Field]) -> QGridLayout:
        grid = QGridLayout(holder)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(4)
        grid.setVerticalSpacing(1)
        grid.setColumnStretch(1, 1)
        for row, field in enumerate(shown):
            editor = self.editors[field.name] = self._editor(field)
            label = QLabel(field.label)
            label.setToolTip(field.tooltip)
            label.setMinimumWidth(0 if self._inline else LABEL_WIDTH)
            unit = QLabel("" if self._inline else field.unit)
            unit.setToolTip(field.tooltip)
            reset = self._resets[field.name] = QToolButton(text="↺", autoRaise=True)
            reset.setToolTip(f"Reset {field.label} to its default.")
            reset.clicked.connect(lambda _=False, f=field: self.reset(f.name))
            policy = reset.sizePolicy()
            policy.setRetainSizeWhenHidden(not self._inline)  # a row has no room to spare
            reset.setSizePolicy(policy)
            for column, widget in enumerate((label, editor.widget, unit, reset)):
                grid.addWidget(widget, row, column)
        return grid

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Labels and units get one width, so that the controls form one column.

        Only now, because the window's style pads them.
        """
        super().showEvent(event)
        self.align(self.label_width)
        self._widen(2, self._width_of(2))

    @property
    def label_width(self) -> int:
        """Width that the longest label needs, or that it was given."""
        given = max(grid.columnMinimumWidth(0) for grid in self._grids)
        return max(given, self._width_of(0))

    def align(self, label_width: int) -> None:
        """Begin the controls so far to the right, below those of other forms."""
        self._widen(0, label_width)

    def _width_of(self, column: int) -> int:
        cells = [g.itemAtPosition(row, column) for g in self._grids for row in range(g.rowCount())]
        return max((c.sizeHint().width() for c in cells if c is not None), default=0)

    def _widen(self, column: int, width: int) -> None:
        for grid in self._grids:
            grid.setColumnMinimumWidth(column, width)

    def _editor(self, field: Field) -> Editor:
        if field.kind == "layer":
            return LayerEditor(field, self._on_changed, self._layers)
        numeric = field.kind in ("int", "float")
        tiny = field.kind == "float" and 0 < abs(_first(field.default) or 0) < SMALLEST_STEP
        if field.kind == "text" or tiny or (numeric and field.optional):
            return TextEditor(field, self._on_changed)
        if field.per_axis and numeric:
            return AxesEditor(field, self._on_changed, self.ndim)
        return ValueEditor(field, self._on_changed)

    def _on_changed(self) -> None:
        if len(self.editors) < len(self._fields) or not hasattr(self, "fault"):
            return  # still being built
        fault = ""
        try:
            self.value()
        except InvalidInput as error:
            fault = str(error)
        self.fault.setText(fault)
        self.fault.setVisible(bool(fault))
        for name, reset in self._resets.items():
            reset.setVisible(self._raw(name) != self._plain_default(name))
        self.changed.emit()

    def _raw(self, name: str) -> Any:
        try:
            return self.editors[name].get()
        except InvalidInput:
            return InvalidInput  # differs from every default: the reset button shows

    def _plain_default(self, name: str) -> Any:
        default = self._fields[name].default
        return list(default) if isinstance(default, tuple) else default

    def reset(self, name: str) -> None:
        """Set one field to its default."""
        self.editors[name].set(self._fields[name].default)
        self._on_changed()

    @property
    def has_advanced(self) -> bool:
        """Whether there are folded controls."""
        return bool(self._folded)

    def show_advanced(self, shown: bool) -> None:
        """Unfold or fold the controls that are seldom needed."""
        self.advanced.setVisible(shown and self.has_advanced)

    def values(self) -> dict[str, Any]:
        """Plain data for a recipe; raises `InvalidInput` for a text that is no number."""
        return {name: editor.get() for name, editor in self.editors.items()}

    def chosen(self) -> dict[str, Any]:
        """Like `values`, only what differs from the defaults."""
        self.value()
        return {k: v for k, v in self.values().items() if v != self._plain_default(k)}

    def value(self) -> Parameters:
        """The validated parameters; raises `InvalidInput`."""
        return validate(self.parameters, self.values())

    def set_values(self, data: Mapping[str, Any]) -> None:
        """Show the values of a recipe; fields it does not name take their default."""
        for name, field in self._fields.items():
            self.editors[name].set(data.get(name, field.default))
        self._on_changed()

    def take_over(self, values: Mapping[str, Any]) -> None:
        """Show the values of another form that are valid here; leave the rest as it is."""
        for name in self.editors.keys() & values.keys():
            with contextlib.suppress(InvalidInput):
                valid = validate(self.parameters, self.values() | {name: values[name]})
                self.editors[name].set(valid.model_dump(mode="json")[name])
        self._on_changed()

    def hint(self, name: str, text: str) -> None:
        """Grey text in an empty field, for example the estimated value."""
        editor = self.editors.get(name)
        if isinstance(editor, TextEditor):
            editor.hint(text)

    def refresh_layers(self) -> None:
        """Offer the layers that exist now."""
        for editor in self.editors.values():
            if isinstance(editor, LayerEditor):
                editor.refresh()
