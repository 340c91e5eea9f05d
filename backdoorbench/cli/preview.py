"""bdx preview [KEY=VALUE ...] [--output FILE] [--images N]"""

from collections.abc import Sequence
from pathlib import Path

from backdoorbench.cli.arguments import Parser, composed
from backdoorbench.errors import ConfigError, check_range


def carry_out(words: Sequence[str]) -> int:
    """Draws what a trigger does, and says how visible it is. Exit code."""
    parser = Parser("preview", "A picture of what an attack's trigger does; nothing is trained.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for a run: attack=sig dataset=cifar10")
    parser.add_argument("--output", metavar="FILE", help="a PNG; preview-ATTACK-DATASET.png in the outputs by default")
    parser.add_argument("--images", type=int, default=8, help="columns; 8 by default")
    chosen = parser.parse_intermixed_args(words)
    check_range("--images", chosen.images, 1, 100)
    if chosen.output is not None and not chosen.output.lower().endswith(".png"):
        raise ConfigError(f"'{chosen.output}' is no name for a preview; expected one in .png. Rename it.")
    from backdoorbench.pipeline import plan, preview

    made = plan.plan(composed(chosen.settings, chosen.config_dirs))
    file = Path(chosen.output or made.outputs.root / f"preview-{made.attack.name}-{made.dataset.name}.png")
    figures = preview.draw(made, file, chosen.images)
    print(
        f"{made.attack.name} on {made.dataset.name}: PSNR {figures['psnr']:.1f} dB, SSIM {figures['ssim']:.3f} (medians), "
        f"largest change {figures['largest_levels']:.0f} of 255"
    )
    print(f"wrote {file}")
    return 0
