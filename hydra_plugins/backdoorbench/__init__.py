"""Hydra takes launchers and sweepers from this namespace only, and only if they are defined in it."""

from backdoorbench.launchers.grid import Grid
from backdoorbench.launchers.pool import Pool


class GridSweeper(Grid):
    """`hydra/sweeper=grid`."""


class PoolLauncher(Pool):
    """`hydra/launcher=pool`."""
