"""Hydra takes launchers and sweepers from this namespace only, and only if they are defined in it."""

from backdoorbench.sweeps.grid import Grid, Listing
from backdoorbench.sweeps.pool import Pool


class GridSweeper(Grid):
    """`hydra/sweeper=grid`."""


class ListingSweeper(Listing):
    """`hydra/sweeper=listing`."""


class PoolLauncher(Pool):
    """`hydra/launcher=pool`."""
