"""The command line: ``invprior run``, ``resume``, ``jobs``, ``methods``, ``demo``, ``open``, ...

Exit codes: 0 done, 2 bad input (one line says why), 3 the job failed, 130 cancelled.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from napari_invprior import jobs, registry
from napari_invprior.errors import Cancelled, InvalidInput, JobError

app = typer.Typer(
    help="Inverse problems with learned priors.", no_args_is_help=True, add_completion=False
)
_errors = Console(stderr=True)

Workers = Annotated[int, typer.Option(
    help="Processes that compute blocks; 0: this process alone, with all its threads.", min=0,
)]
ClusterAddress = Annotated[str | None, typer.Option(
    help="Compute blocks on a dask cluster: address of its scheduler, tcp://host:port.",
)]
OnlyGpu = Annotated[bool, typer.Option(
    "--gpu", help="Use only workers of the cluster that have the resource GPU.",
)]


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn the package's errors into exit codes and one line on stderr."""
    try:
        yield
    except InvalidInput as error:
        _fail(str(error), 2)
    except JobError as error:
        _fail(str(error), 3)
    except (Cancelled, KeyboardInterrupt) as error:
        _fail(str(error) or "cancelled", 130)


def _fail(reason: str, code: int) -> None:
    line = " ".join(reason.split())
    _errors.print(f"invprior: {line}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data) + "\n")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[jobs.Event], None]]:
    """A sink for events: a bar per stage and messages, on stderr."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, disable=quiet, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(event: jobs.Event) -> None:
            if isinstance(event, jobs.Message):
                style = "yellow" if event.level == "warning" else ""
                _errors.print(event.text, style=style, markup=False, highlight=False)
            elif isinstance(event, jobs.Progress):
                if event.stage not in tasks:
                    tasks[event.stage] = bars.add_task(event.stage, total=1, figures="")
                figures = "  ".join(f"{k} {v:.4g}" for k, v in event.losses.items())
                bars.update(
                    tasks[event.stage], completed=event.step, total=event.total, figures=figures
                )

        yield show


def _recipe(name: str, settings: list[str]) -> Any:
    """The recipe of a file or the example of that name, with ``--set`` applied."""
    from napari_invprior import recipes
    from napari_invprior.io.files import read_bytes
    from napari_invprior.recipes.model import LONGEST_TEXT

    path = Path(name)
    if path.suffix.lower() == ".json" or path.exists():
        try:
            recipe = recipes.parse(read_bytes(path, LONGEST_TEXT).decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"cannot read the recipe {name}: {error}") from None
    else:
        recipe = recipes.load_example(name)
    return recipe.with_settings(dict(map(_setting, settings)))


def _setting(text: str) -> tuple[str, Any]:
    """``key=value`` with a JSON value; anything else counts as text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInput(f"--set {text}: write key=value, as in prior.patch_size=8")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of an example.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value: prior.patch_size=8.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("invprior-output"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all cores.", min=0)] = 0,
    workers: Workers = 0,
    cluster: ClusterAddress = None,
    gpu: OnlyGpu = False,
    memory: Annotated[
        float, typer.Option(help="Memory for blocks, GB; 0: half of what is free.", min=0)
    ] = 0,
) -> None:
    """Run a recipe and write its results; block by block where the volume is large."""
    with _exit_codes():
        import torch

        from napari_invprior import recipes
        from napari_invprior.blocks.job import needs_blocks, start

        if threads:
            torch.set_num_threads(threads)
        parsed = _recipe(recipe, settings or [])
        with _progress(quiet=as_json) as show, _interruptible() as should_stop:
            if not needs_blocks(parsed):
                outcome = jobs.run(recipes.run(parsed, folder=out, should_stop=should_stop), show)
                outputs = recipes.write_outcome(outcome, out)
            else:
                outcome = jobs.run(start(
                    parsed, out, pool=_pool(workers, threads, cluster, gpu),
                    memory=round(memory * 1e9) or None, should_stop=should_stop,
                ), show)
                outputs = outcome.detail.outputs
        _tell(outcome, outputs, as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a job that was run in blocks.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all cores.", min=0)] = 0,
    workers: Workers = 0,
    cluster: ClusterAddress = None,
    gpu: OnlyGpu = False,
) -> None:
    """Go on with a job: compute the blocks that are not done, and those that failed."""
    with _exit_codes():
        from napari_invprior.blocks import job

        with _progress(quiet=as_json) as show, _interruptible() as should_stop:
            pool = _pool(workers, threads, cluster, gpu)
            outcome = jobs.run(job.resume(folder, pool=pool, should_stop=should_stop), show)
        _tell(outcome, outcome.detail.outputs, as_json)


@app.command(name="jobs")
def list_jobs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of jobs; all that are known by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List jobs that were run in blocks, and how far they are."""
    with _exit_codes():
        from napari_invprior.blocks import catalogue

        found = [catalogue.info(f) for f in folders] if folders else list(catalogue.known())
        if as_json:
            _print_json([job.as_dict() for job in found])
            return
        table = Table("state", "blocks", "begun", "what", "folder", box=SIMPLE_HEAD)
        for job in found:
            failed = f", {job.failed} failed" if job.failed else ""
            table.add_row(job.state, f"{job.done} of {job.total}{failed}", job.created,
                          escape(job.title), escape(str(job.folder)))
        Console().print(table if found else "no jobs")


def _pool(workers: int, threads: int, cluster: str | None, gpu: bool) -> Any:
    """What makes the pool that the options ask for."""
    from napari_invprior.blocks.pool import Cluster, Threads

    if cluster is not None or workers > 1 or gpu:
        return lambda: Cluster(cluster, workers or 2, max(1, threads // max(1, workers)), gpu)
    return lambda: Threads(1, threads)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C (or TERM) stop the job at its next step; the second ends it at once."""
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(outcome: Any, outputs: dict[str, str], as_json: bool) -> None:
    from napari_invprior.recipes.outputs import summary

    if as_json:
        _print_json(summary(outcome) | {"outputs": outputs})
    else:
        _report(summary(outcome), outputs)


def _report(figures: dict[str, Any], outputs: dict[str, str]) -> None:
    metrics = figures["metrics"]
    if "table" in metrics:
        Console().print(_study_table(metrics["table"], Console().width))
    table = Table(show_header=False)
    for name, value in metrics.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4g}")
    for name, value in metrics.get("baselines", {}).items():
        table.add_row(f"psnr of {name}", f"{value:.2f}")
    table.add_row("seconds", f"{figures['seconds']:.1f}")
    table.add_row("peak memory", f"{figures['peak_memory_mb']:.0f} MB")
    for name, path in outputs.items():
        table.add_row(name, path)
    Console().print(table)


def _study_table(table: list[dict[str, Any]], width: int) -> Table:
    """The rows of a study, the best figure of each column bold; as many columns as fit."""
    from napari_invprior.study.table import Row, best, shown_columns

    rows = [Row.from_dict(data) for data in table]
    columns = list(shown_columns(rows))
    room = width - 2 - max(len(row.title) for row in rows)
    wide = {c.key: max(len(c.label), *(len(row.text(c)) for row in rows)) + 2 for c in columns}
    while len(columns) > 1 and sum(wide[c.key] for c in columns) > room:
        columns.pop()  # all of them are in table.csv
    shown = Table("method", box=SIMPLE_HEAD)
    for column in columns:
        shown.add_column(column.label, justify="right", no_wrap=True)
    for row in rows:
        texts = [
            f"[bold]{row.text(c)}[/bold]" if best(rows, c) is row else row.text(c) for c in columns
        ]
        reason = f" [yellow]({escape(row.reason)})[/yellow]" if row.reason else ""
        shown.add_row(escape(row.title) + reason, *texts)
    return shown


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every method with its kind and papers."""
    listed = [method.describe() for method in registry.methods()]
    if as_json:
        _print_json(listed)
        return
    table = Table("kind", "name", "what", "papers")
    for method in listed:
        table.add_row(
            method["kind"], method["name"], method["summary"], ", ".join(method["papers"])
        )
    Console().print(table)


@app.command()
def examples(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the shipped example recipes."""
    from napari_invprior import recipes

    listed = recipes.examples()
    if as_json:
        _print_json(listed)
        return
    table = Table("name", "title", "papers")
    for example in listed:
        table.add_row(example["name"], example["title"], ", ".join(example["papers"]))
    Console().print(table)


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of an example.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Replace a value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Validate a recipe, test its operator's adjoint, estimate memory and time."""
    with _exit_codes():
        from napari_invprior.recipes.check import check_recipe

        report = check_recipe(_recipe(recipe, settings or []))
        if as_json:
            _print_json(report)
            return
        for name, value in report.items():
            Console().print(f"{name}: {value}", highlight=False)


@app.command()
def demo(
    headless: Annotated[bool, typer.Option(help="Run the whole job without a person.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-output"),
    quit_after: Annotated[float, typer.Option(help="Close the window after so many seconds.")] = 0,
    screenshot: Annotated[Path | None, typer.Option(help="Save a picture of the window.")] = None,
) -> None:
    """The main job on built-in data, in the window."""
    with _exit_codes():
        if not _has_display():
            _demo_on_a_virtual_display(out, screenshot)
        with _window_extra():
            from napari_invprior.app.demo import open_demo
        figures = open_demo(
            headless=headless, out=out, quit_after=quit_after or None, screenshot=screenshot
        )
        if headless:
            Console().print(json.dumps(figures, indent=2))


@contextmanager
def _window_extra() -> Iterator[None]:
    """Say what to install where napari or Qt is missing."""
    try:
        yield
    except ImportError as error:
        raise InvalidInput(
            f"the window cannot start ({error}); install it: pip install 'napari-invprior[app]'"
        ) from None


def _has_display() -> bool:
    """Whether a window can be shown; without one Qt would abort the process."""
    return sys.platform != "linux" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def _demo_on_a_virtual_display(out: Path, screenshot: Path | None) -> None:
    """Start the headless demo again below ``xvfb-run``, in place of this process."""
    xvfb = shutil.which("xvfb-run")
    if xvfb is None:
        raise InvalidInput(
            "there is no display; install xvfb and run: xvfb-run -a invprior demo --headless"
        )
    command = [xvfb, "-a", "-s", "-screen 0 1280x800x24", sys.executable, "-m"]
    command += ["napari_invprior.cli", "demo", "--headless", "--out", str(out)]
    if screenshot is not None:
        command += ["--screenshot", str(screenshot)]
    sys.stdout.flush()
    os.execv(xvfb, command)  # noqa: S606


@app.command(name="open")
def open_results(
    folder: Annotated[Path, typer.Argument(help="Folder that a run wrote.")],
) -> None:
    """Open the results of a run in the viewer."""
    with _exit_codes():
        if not _has_display():
            raise InvalidInput("there is no display to open the results on")
        with _window_extra():
            from napari_invprior.app.viewer.results import open_results as show
        show(folder)


def main() -> None:
    """Entry point of the ``invprior`` command."""
    app()


if __name__ == "__main__":
    main()
