"""What commands print: bars, tables, and what could not be used."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from samcorrect.lib.loop import workspace as ws

# Done, but some input could not be used.
EXIT_SET_ASIDE = 3
EXIT_FAULT = 1
# Where there is no terminal, a stage that takes longer tells how far it is this often.
TELL_EVERY_S = 60.0


class RateColumn(ProgressColumn):
    """How many parts of a stage are done in a minute."""

    def render(self, task: Task) -> Text:
        """The rate of the last seconds, or of the whole stage once it is over."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{60 * rate:.0f}/min")


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
    """A bar for each stage on a terminal; elsewhere a line for each finished stage and, once a minute, for the one at
    work; `also` is told the same.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    began: dict[str, tuple[float, int]] = {}
    told_s = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:

        def show(stage: str, done: int, total: int) -> None:
            nonlocal told_s
            if also is not None:
                also(stage, done, total)
            now_s = time.monotonic()
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=total)
                began[stage] = (now_s, done)
                told_s = now_s
            display.update(bars[stage], completed=done, total=total)
            if console.is_terminal:
                return
            if done == total or now_s - told_s >= TELL_EVERY_S:
                told_s = now_s
                began_s, done_then = began[stage]
                rate = (done - done_then) / max(now_s - began_s, 1e-9)
                console.print(progress_line(stage, done, total, rate), highlight=False)

        yield show


def progress_line(stage: str, done: int, total: int, rate: float) -> str:
    """How far a stage is; with its rate, in parts a second, and the time left while it is at work."""
    line = f"{stage}: {done} of {total}"
    if done == total or rate <= 0:
        return line
    return f"{line}, {60 * rate:.0f} a minute, {timedelta(seconds=round((total - done) / rate))} left"
