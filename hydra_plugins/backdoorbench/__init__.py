"""Hydra takes launchers, sweepers and search paths from this namespace only, and only if they are defined in it."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from backdoorbench.config import plugins
from backdoorbench.sweeps.grid import Grid, Listing
from backdoorbench.sweeps.pool import Pool


class GridSweeper(Grid):
    """`hydra/sweeper=grid`."""


class ListingSweeper(Listing):
    """`hydra/sweeper=listing`."""


class PoolLauncher(Pool):
    """`hydra/launcher=pool`."""


class KnownPlugins(SearchPathPlugin):
    """The yaml files of the plugins that bdx knows, after ours: they add options, and change none."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in plugins.conf_dirs():
            search_path.append(f"plugin {plugins.owner(folder)}", f"file://{folder}")
