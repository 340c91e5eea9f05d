"""bdx --help: what a user chooses from, and the verbs."""

import textwrap
from collections.abc import Sequence

from backdoorbench.config import catalog
from backdoorbench.config.groups import NAMES

WIDTH = 118
TEXT = """bdx tells whether a backdoor defense works: it plants a backdoor, purifies the model, and prints
CA (clean accuracy), ASR (attack success rate) and RA (robust accuracy) before and after.

Usage      bdx GROUP=OPTION ... KEY=VALUE ...     for instance: bdx attack=badnets defense=fst

Groups
{groups}

Verbs      bdx list [GROUP]            what there is          bdx show defense=fst   one option, explained
           bdx show defense=fst dataset=gtsrb scale=small     the values that hold there, and the file of each
           bdx report outputs/         tables of what was run
           bdx preview attack=sig      its trigger, drawn     bdx export attack=sig --to DIR   the poisoned training set
           bdx reproduce fst           a paper's table beside its published figures
           bdx plot curves outputs/ --output FILE.svg   learning curves; rates: ASR against the poison rate
           bdx runs                    what was run               bdx cache              what is kept
           bdx config RUN              its settings, and a command that repeats it
           bdx cite defense=fst        BibTeX of its paper
           bdx inspect FILE, bdx clean FILE   a network that you did not train: is it infected; purified, as it was read
Sweeps     bdx -m attack=badnets,blended attack.poison_rate=0.1,0.01 defense=ft,fst seed=0,1,2
           bdx plan ...                what that would do; bdx -m hydra/launcher=pool ...   on all GPUs or cores
Inspect    bdx --cfg job [overrides]   the whole configuration, nothing run
Own files  bdx --config-dir DIR ...    a folder laid out as conf/ is, with any verb too; plugins=[PACKAGE] for classes
           --plugin DIR with any verb: code and yaml of your own; bdx new defense NAME --to DIR writes a start
           bdx check DIR               whether every file in it says what it should; nothing is trained
Complete   eval "$(bdx -sc install=bash)"   (zsh and fish too)
"""


def print_help(folders: Sequence[str] = ()) -> None:
    """Prints it.

    folders  of the user's own yaml files"""
    lines = []
    for group in NAMES:
        options = ", ".join(catalog.names(group, folders))
        lines += textwrap.wrap(options, WIDTH, initial_indent=f"  {group:<11}", subsequent_indent=" " * 13)
    print(TEXT.format(groups="\n".join(lines)), end="")
