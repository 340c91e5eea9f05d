"""`bdx`: a verb, a run or a sweep, and one paragraph for whatever a user got wrong. No maths.

A bare first word is a verb, which is a module of this folder; anything else goes to Hydra. torch is imported only when work
starts.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from backdoorbench.config import plugins
from backdoorbench.errors import (
    FAILURE,
    INTERRUPTED,
    USER_MISTAKE,
    BdxError,
    ConfigError,
    did_you_mean,
    join_words,
    paragraph,
    shown,
)
from backdoorbench.progress import forgive_terminals, logging_on, outlasting_readers

VERBS = (
    "list", "show", "report", "plot", "preview", "export", "reproduce", "runs", "cache", "plan", "check", "inspect", "clean",
    "new", "config", "cite",
)  # fmt: skip
HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `bdx` with the given arguments (those of the process by default) and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that wait spin shortly: for ever slows a shared machine down
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # sixty-fold, not at all costs small networks a third
    forgive_terminals()
    with outlasting_readers():
        try:
            with logging_on():
                rest, folders = without_plugins(words)
                with plugins.using(folders):
                    if plugins.known():
                        from backdoorbench.config import catalog

                        catalog.refuse_hidden()
                    return answer(rest)
        except BdxError as error:
            print(f"bdx: {paragraph(str(error))}", file=sys.stderr)
            return USER_MISTAKE
        except KeyboardInterrupt:
            print("bdx: interrupted; the same command goes on where it stopped", file=sys.stderr)
            return INTERRUPTED
        except OSError as error:  # of a file, it is a StorageError by now; of standard output, nobody's bug
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            print(
                f"bdx: standard output cannot be written ({error.strerror}); what was finished is kept", file=sys.stderr
            )
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # or its last flush complains anew
            return USER_MISTAKE
        except SystemExit as error:  # a verb's --help
            return int(error.code or 0) if isinstance(error.code, int | None) else FAILURE


def without_plugins(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without each `--plugin DIR` or `--plugin=DIR`, wherever it stands, and these folders. ConfigError where the last
    names none."""
    rest: list[str] = []
    folders: list[str] = []
    left = iter(words)
    for word in left:
        if word == plugins.FLAG:
            folders.append(next(left, ""))
        elif word.startswith(f"{plugins.FLAG}="):
            folders.append(word.partition("=")[2])
        else:
            rest.append(word)
    if "" in folders:
        raise ConfigError(
            f"{plugins.FLAG} names no folder; expected that of a plugin, as in {plugins.FLAG} DIR. Name one."
        )
    return rest, folders


def answer(words: Sequence[str]) -> int:
    """Does what the words say. Exit code."""
    if words and words[0] == "--version":
        from importlib.metadata import version

        print(f"bdx {version('bdx')}")
        return 0
    if "" in words:
        raise ConfigError(
            "one of the words is empty; expected a verb or settings, KEY=VALUE. Leave it out: an unset variable?"
        )
    is_verb = bool(words) and not words[0].startswith(("-", "+", "~")) and "=" not in words[0]
    if is_verb and words[0] not in VERBS:
        raise ConfigError(
            f"{shown(words[0])} is no verb of bdx.{did_you_mean(words[0], VERBS)} The verbs are "
            f"{join_words(list(VERBS))}; a run is described by settings, such as attack=badnets."
        )
    if is_verb:
        verb = importlib.import_module(f"backdoorbench.cli.{words[0]}")
        code: int = verb.carry_out(words[1:])
        return code
    if any(word in HELP for word in words):
        from backdoorbench.cli.flags import folders_among
        from backdoorbench.cli.help import print_help

        print_help(folders_among(words))
        return 0
    from backdoorbench.cli import hydra_run

    return hydra_run.carry_out(words)


if __name__ == "__main__":
    sys.exit(main())
