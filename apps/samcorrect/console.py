"""What commands print: bars, tables, and what could not be used."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from samcorrect.lib.loop import workspace as ws

# Done, but some input could not be used.
EXIT_SET_ASIDE = 3
EXIT_FAULT = 1


def tell_set_aside(faults: Sequence[tuple[str, str]]) -> int:
    """Print what could not be used; returns the exit code, which is not 0 although the others were processed."""
    for name, reason in faults:
        print(f"set aside: {name}: {reason}")
    return EXIT_SET_ASIDE if faults else 0


def shown(value: float | None, otherwise: str = "not defined") -> str:
    return otherwise if value is None else f"{value:.3f}"


def print_table(told: dict) -> None:
    width = max(len(str(key)) for key in told)
    for key, value in told.items():
        print(f"{key!s:{width}s}  {value}")


@contextmanager
def show_progress(also: ws.Progress | None = None) -> Iterator[ws.Progress]:
    """A bar for each stage on a terminal; a line for each finished stage elsewhere; `also` is told the same."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:

        def show(stage: str, done: int, total: int) -> None:
            if also is not None:
                also(stage, done, total)
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=total)
            display.update(bars[stage], completed=done, total=total)
            if done == total and not console.is_terminal:
                console.print(f"{stage}: {done} of {total}", highlight=False)

        yield show
