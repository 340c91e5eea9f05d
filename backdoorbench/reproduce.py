"""`bdx reproduce`: a paper's evaluation as a sweep of its pinned experiment, its result beside what was published."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from backdoorbench import cache, catalog
from backdoorbench.errors import ConfigError, did_you_mean, join_words

LISTS = {"attacks": "attack", "defenses": "defense", "rates": "attack.poison_rate", "seeds": "seed"}
Sweep = Callable[
    [Sequence[str], Callable[[Path], int]], int
]  # (overrides, what to do with the ended sweep's folder) -> exit code


def papers() -> list[str]:
    """The experiments there are."""
    return [name for name in catalog.names("experiment") if name != "none"]


def reproduce(words: Sequence[str], parser: argparse.ArgumentParser, sweep: Sweep) -> int:
    """Runs what is missing of an experiment and prints paper, ours, verdict and the settings that differ. Exit code.

    words  such as `fst --scale small --seeds 0,1,2 dataset.root=/data/cifar10`; settings go to every run
    sweep  carries overrides out as a sweep"""
    parser.add_argument("paper", help=f"one of {', '.join(papers())}")
    parser.add_argument("--scale", default="full", help=f"one of {', '.join(catalog.names('scale'))}; full by default")
    for name in LISTS:
        parser.add_argument(f"--{name}", metavar="LIST", help="instead of the experiment's own, separated by commas")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="for every run")
    chosen = parser.parse_intermixed_args(words)
    _check(chosen.paper, papers(), "experiment")
    _check(chosen.scale, catalog.names("scale"), "scale")
    overrides = [f"experiment={chosen.paper}", f"scale={chosen.scale}", *chosen.settings]
    overrides += [f"{key}={value}" for name, key in LISTS.items() if (value := getattr(chosen, name)) is not None]
    return sweep(overrides, lambda folder: show(folder, chosen.paper, chosen.scale))


def show(folder: Path, paper: str, scale: str) -> int:
    """Prints the comparison of a sweep's finished runs and writes it to `outputs/reproduce/<paper>-<scale>.md`."""
    from backdoorbench import console
    from backdoorbench.launchers import sweep
    from backdoorbench.reporting import formats, published, record, table

    runs = [record.read(Path(left.record)) for left in sweep.collect(folder).values() if left.record]
    found = published.compare(runs, paper)
    if not found:
        return 0
    notes = published.notes(found)
    settings = published.departures((run.config for run in runs), paper)
    notes.append(f"settings other than the experiment's: {'; '.join(settings) or 'none'}")
    notes += table.rebuilt(runs)
    notes.append(table.footer(table.aggregate(runs), runs))
    header, cells = published.grid(found)
    console.print_comparison(console.make_console(), f"{paper}, scale {scale}", header, cells, notes)
    file = Path(runs[0].config["runtime"]["outputs"]).expanduser() / "reproduce" / f"{paper}-{scale}.md"
    with cache.storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    body = formats.pipes(header, cells, header.index("n"))
    cache.write_text(file, f"# {paper}, scale {scale}\n\n{body}\n" + "".join(f"- {note}\n" for note in notes))
    return 0


def _check(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        raise ConfigError(
            f"{what} '{name}' is unknown.{did_you_mean(name, known)} There are {join_words(list(known))}."
        )
