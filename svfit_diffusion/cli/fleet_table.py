"""What happens in a fleet, as lines, and below them in a terminal a table of its workers."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from svfit_diffusion.fleet.driver import Died, Failed, Finished, Fleet, Looked
from svfit_diffusion.fleet.worker import Seen

_SHOWN = 4  # subjects of a worker


def follow(fleet: Fleet) -> None:
    """Have a fleet train, and show it; raises as `Fleet.news`."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    ledger = fleet.ledger
    done = len(ledger.records)
    if done:
        console.print(f"{done} of {len(ledger)} subjects are done already")
    for name, reason in ledger.failures.items():
        console.print(f"{name} is not trained: {reason}")
    seen: dict[int, Seen] = {}
    with Live(table(fleet, seen), console=console, auto_refresh=False, transient=True) as live:
        for news in fleet.news():
            done += isinstance(news, Finished)
            if isinstance(news, Looked):
                seen[news.worker] = news.seen
            else:
                console.print(line(news, f"{done} of {len(ledger)}"))
            if isinstance(news, Died):
                seen.pop(news.worker, None)
            if console.is_terminal:
                live.update(table(fleet, seen), refresh=True)
    console.print(end(fleet))


def line(news: Finished | Failed | Died, count: str) -> str:
    """What has happened, in a line; `count` says how many are done by then."""
    if isinstance(news, Finished):
        steps, seconds = news.record["steps"], news.record["worker_seconds"]
        return f"{news.name} is done ({count}): {steps} steps, {seconds:.1f} s of a worker"
    if isinstance(news, Failed):
        return f"{news.name} is not trained: {news.reason}"
    names = f"; {', '.join(news.names)} wait again" if news.names else ""
    return f"Worker {news.worker} has ended ({news.reason}){names}"


def end(fleet: Fleet) -> str:
    """How a fleet stands once nobody trains any more."""
    ledger = fleet.ledger
    seconds = sum(record["worker_seconds"] for record in ledger.records.values())
    said = f"{len(ledger.records)} of {len(ledger)} subjects are done"
    if ledger.open:
        return f"Stopped, {said}; the same command goes on"
    return f"{said}, in {seconds:,.0f} s of workers: {ledger.costs_path} has what each took"


def table(fleet: Fleet, seen: dict[int, Seen]) -> Table:
    """The workers, and what they do, under how many subjects are done."""
    counts = fleet.counts
    title = (
        f"{counts['done']} of {len(fleet.ledger)} done, {counts['waiting']} waiting, "
        f"{counts['failed']} failed"
    )
    shown = Table("worker", "process", "subjects", title=title, box=box.SIMPLE)
    for number, answer in sorted(seen.items()):
        steps = [f"{name} {done}/{total}" for name, (done, total) in answer.steps.items()]
        more = f", {len(steps) - _SHOWN} more" if len(steps) > _SHOWN else ""
        subjects = Text(", ".join(steps[:_SHOWN]) + more or "–")
        shown.add_row(str(number), f"{answer.host}:{answer.pid}", subjects)
    return shown
