"""The runs of a sweep as a list, and what is left to do."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from backdoorbench.screen import clock
from backdoorbench.sweeps.forecast import Ahead, Forecast, mistaken


def print_plan(console: Console, runs: Sequence[Ahead], forecast: Forecast) -> None:
    """The runs of a sweep, one a line, and what is left to do."""
    told = mistaken(runs)
    width = max(len(run.name) for run in runs)
    console.print()
    for run, state in zip(runs, forecast.states, strict=True):
        cost = clock(sum(run.seconds.values())) if run.seconds and state != "done" else ""
        line = f"  {run.number:>4}  {run.key:<12}  {run.name:<{width}}  {state:<24} {cost}".rstrip()
        console.print(Text(line), soft_wrap=True, style="dim" if state == "done" else "")
        if run.error is not None and run not in told[:1]:  # that one is raised afterwards
            console.print(Text(f"        {run.error}"), soft_wrap=True, style="yellow")
    done = forecast.states.count("done")
    impossible = forecast.states.count("cannot be")
    said = f"{len(runs):,} run{'s' * (len(runs) != 1)}: {done:,} done, {len(runs) - done - impossible:,} to do"
    for before in ("interrupted", "failed"):
        again = sum(state.endswith(f", {before} before") for state in forecast.states)
        said += f" ({again:,} {before} before)" if again else ""
    said += f", {impossible:,} that cannot be" if impossible else ""
    console.print(Text(f"\n  {said}"), style="bold")
    console.print(Text(f"  models to train first: {forecast.trained:,}; found in the cache: {forecast.cached:,}"))
    if forecast.unknown < len(runs) - done - impossible:
        guess = f"  about {clock(forecast.seconds)} one after another, by {forecast.records:,} past records"
        guess += f"; {forecast.unknown:,} of the runs like none of them and not counted" if forecast.unknown else ""
    else:
        guess = "  no past record tells how long it takes"
    if forecast.seconds or forecast.unknown:
        console.print(Text(guess))
