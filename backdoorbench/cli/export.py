"""bdx export [KEY=VALUE ...] --to DIR [--format png|npz]"""

from collections.abc import Sequence
from pathlib import Path

from backdoorbench.cli.arguments import Parser, composed


def carry_out(words: Sequence[str]) -> int:
    """Writes a poisoned training set. Exit code."""
    parser = Parser("export", "The poisoned training set, for those who train elsewhere; nothing is trained.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for a run: attack=badnets dataset=cifar10")
    parser.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    parser.add_argument("--format", choices=("png", "npz"), default="png", help="images and labels.csv, or train.npz")
    chosen = parser.parse_intermixed_args(words)
    from backdoorbench.pipeline import export, plan

    made = plan.plan(composed(chosen.settings, chosen.config_dirs))
    counts = export.write(made, Path(chosen.to), chosen.format)
    print(f"wrote {chosen.to}: " + ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in counts.items()))
    return 0
