"""bdx plan KEY=VALUES ..."""

from collections.abc import Sequence

from backdoorbench.cli import hydra_run
from backdoorbench.cli.arguments import SWITCHES, Parser
from backdoorbench.config.compose import search_path
from backdoorbench.errors import ConfigError


def carry_out(words: Sequence[str]) -> int:
    """Lists the runs of a sweep. Exit code."""
    parser = Parser(
        "plan",
        "The runs of a sweep: what is done, what is cached, what the rest will take. Nothing is trained. Exit code 2 says that "
        "the sweep would start no run.",
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUES", help="as after bdx -m: defense=ft,fst seed=0,1,2")
    chosen = parser.parse_intermixed_args([word for word in words if word not in SWITCHES])
    if any(word.startswith("hydra/sweeper=") for word in chosen.settings):
        raise ConfigError(
            "bdx plan lists the runs of a grid, and a search chooses its runs as it goes. Leave hydra/sweeper out, and list "
            "values."
        )
    return hydra_run.carry_out(["-m", *search_path(chosen.config_dirs), *chosen.settings, "hydra/sweeper=listing"])
