"""`bdx reproduce`: a paper's evaluation as a sweep of its pinned experiment, its result beside what was published."""

import re
import zlib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backdoorbench.cli import hydra_run
from backdoorbench.cli.arguments import Parser
from backdoorbench.config import catalog
from backdoorbench.config.compose import as_read, search_path, searched
from backdoorbench.config.groups import GROUPS, SETTINGS
from backdoorbench.errors import ConfigError, did_you_mean, join_words, shown
from backdoorbench.sweeps.sweep import Left

UNTOLD = (
    "hydra",
    "dataset.root",
    *(each.name for each in (*GROUPS, *SETTINGS) if not each.run),
)  # what moves no figure
LONGEST = 120  # characters of a page's name

LISTS = {"attacks": "attack", "defenses": "defense", "rates": "attack.poison_rate", "seeds": "seed"}


def papers(folders: Sequence[str] = ()) -> list[str]:
    """The experiments that are evaluations; folders: of the user's own yaml files."""
    return [name for name in catalog.names("experiment", folders) if name not in ("none", "given")]


def carry_out(words: Sequence[str]) -> int:
    """Runs what is missing of an experiment and prints paper, ours, verdict and the settings that differ. Exit code.

    words  such as `fst --scale small --seeds 0,1,2 dataset.root=/data/cifar10`; settings go to every run"""
    parser = Parser(
        "reproduce",
        "A paper's evaluation: runs what is missing, and prints its figures, ours, and the settings that differ.",
    )
    parser.add_argument("paper", help=f"one of {', '.join(papers())}")
    parser.add_argument("--scale", default="full", help=f"one of {', '.join(catalog.names('scale'))}; full by default")
    for name in LISTS:
        themselves = " (themselves, not how many)" if name == "seeds" else ""
        told = f"instead of the experiment's own, separated by commas{themselves}"
        parser.add_argument(f"--{name}", metavar="LIST", help=told)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="for every run")
    chosen = parser.parse_intermixed_args(words)
    folders = chosen.config_dirs
    _check(chosen.paper, papers(folders), "experiment")
    _check(chosen.scale, catalog.names("scale", folders), "scale")
    _refuse_twice(chosen)
    overrides = ["-m", *search_path(folders), f"experiment={chosen.paper}", f"scale={chosen.scale}", *chosen.settings]
    overrides += [f"{key}={value}" for name, key in LISTS.items() if (value := getattr(chosen, name)) is not None]
    looked_through = [*folders, *searched(chosen.settings)]
    lists = [f"{name}={value}" for name in LISTS if (value := getattr(chosen, name)) is not None]
    page = page_name(chosen.paper, chosen.scale, [*lists, *chosen.settings])
    return hydra_run.carry_out(overrides, lambda jobs: show(jobs, chosen.paper, chosen.scale, looked_through, page))


def page_name(paper: str, scale: str, narrowed: Sequence[str]) -> str:
    """What the page of a comparison is called: by what was asked for beyond paper and scale, too, so that one of fewer attacks,
    or of another network, replaces no other. Where data and outputs lie, and how runs share the machine, is left out."""
    words = [word for word in narrowed if not re.match(rf"[+~]*({'|'.join(UNTOLD)})\b", word)]
    name = re.sub(r"[^\w.,=+-]+", "_", " ".join([f"{paper}-{scale}", *words]))
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{zlib.crc32(name.encode()):08x}"


def _refuse_twice(chosen: Namespace) -> None:
    """Raises ConfigError where a setting says what an argument of its own says: the table would be headed by the one, and be of
    the other."""
    said = {override.key_or_group: word for word in chosen.settings if (override := as_read(word)) is not None}
    given = {key: f"--{name}" for name, key in LISTS.items() if getattr(chosen, name) is not None}
    for key, flag in {"experiment": "PAPER, the first word,", "scale": "--scale", **given}.items():
        if key in said:
            raise ConfigError(
                f"bdx reproduce was given {shown(said[key])}, which {flag} says too; expected one of the two. Leave out "
                f"the setting."
            )


def show(jobs: Sequence[Left], paper: str, scale: str, folders: Sequence[str] = (), page: str | None = None) -> int:
    """Prints the comparison of a sweep's finished jobs and writes it to `outputs/reproduce/`.

    folders  of the user's own yaml files
    page     the file's name, without its ending; `<paper>-<scale>` where it is None"""
    from backdoorbench import screen
    from backdoorbench.reporting import formats, holdouts, notes, published, rows
    from backdoorbench.storage import record, store
    from backdoorbench.storage.outputs import Outputs

    runs = [run for _, run in record.readable(Path(job.record) for job in jobs if job.record)]
    found = published.compare(runs, paper)
    if not found:
        return 0
    said = [published.RULE, *published.notes(found)]
    settings = published.departures((run.config for run in runs), paper, folders)
    said.append(f"settings other than the experiment's: {'; '.join(settings) or 'none'}")
    said += notes.rebuilt(runs)
    made = rows.aggregate(runs)
    said += [*holdouts.note(made), notes.footer(made, runs)]
    header, cells = published.grid(found)
    print_comparison(screen.make_console(), f"{paper}, scale {scale}", header, cells, said)
    outputs = Outputs(Path(runs[0].config["runtime"]["outputs"]).expanduser())
    file = outputs.comparisons / f"{page or page_name(paper, scale, [])}.md"
    with store.storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    body = formats.pipes(header, cells, header.index("n"))
    store.write_text(file, f"# {paper}, scale {scale}\n\n{body}\n" + "".join(f"- {note}\n" for note in said))
    return 0


def _check(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        raise ConfigError(
            f"{what} '{name}' is unknown.{did_you_mean(name, known)} There are {join_words(list(known))}."
        )


def print_comparison(
    console: Console, title: str, header: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]
) -> None:
    """Published figures beside ours, and what must be said below them."""
    shown = Table(box=None, padding=(0, 1), show_edge=False, title=Text(title), title_justify="left")
    for place, column in enumerate(header):
        figures = header.index("n") <= place < header.index("verdict")
        shown.add_column(column, justify="right" if figures else "left", no_wrap=figures)
    for line in cells:
        shown.add_row(*(Text(cell) for cell in line))
    console.print()
    console.print(shown)
    for note in notes:
        console.print(Text(f"  {note}"), style="dim")
