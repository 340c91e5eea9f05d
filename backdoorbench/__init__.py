"""bdx from Python: the pieces of the command line, for notebooks and other programs.

>>> import backdoorbench as bb
>>> run = bb.run("attack=badnets", "defense=fst")  # doctest: +SKIP
>>> run.purified.asr  # doctest: +SKIP
0.0

Importing this package is cheap; torch arrives with the first call that needs it.
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "build",
    "compose",
    "evaluate",
    "image_set",
    "infect",
    "load_dataset",
    "load_model",
    "plugin",
    "purify",
    "results",
    "run",
    "withhold",
]

if TYPE_CHECKING:
    from backdoorbench.api import (
        build,
        compose,
        evaluate,
        image_set,
        infect,
        load_dataset,
        load_model,
        plugin,
        purify,
        results,
        run,
        withhold,
    )


def __getattr__(name: str) -> Any:
    if name in __all__:
        from backdoorbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'backdoorbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
