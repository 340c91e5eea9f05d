"""docs/demo.svg: what `bdx attack=badnets defense=fst` prints, exported by rich from a real run.

python scripts/demo_picture.py
"""

import logging
import os
import re
import tempfile
from pathlib import Path

from rich.console import Console

from backdoorbench import progress, screen
from backdoorbench.config.compose import compose
from backdoorbench.pipeline import job, outcome
from backdoorbench.reporting.rows import heading
from backdoorbench.storage.record import Run

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "demo.svg"


def main() -> None:
    out = Console(record=True, width=86, highlight=False, force_terminal=True)
    progress.install(screen.Silent())
    handler = screen.ConsoleHandler(out)
    logging.getLogger("backdoorbench").addHandler(handler)
    logging.getLogger("backdoorbench").setLevel(logging.INFO)
    out.print("$ bdx attack=badnets defense=fst", style="bold")

    def announce(run: Run, stage: str) -> None:
        if stage == "planned":
            out.print(f"\n  {heading(run)}", style="bold", markup=False)
        elif stage != "curve":
            out.print(outcome.stage_line(run, stage), markup=False)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # a first run, as a newcomer sees it
        done = job.carry_out(compose(["attack=badnets", "defense=fst"]), announce)
        outcome.print_outcome(out, done.run, done.folder, repeated=False)
    picture = out.export_svg(title="bdx", unique_id="bdx-demo")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(
        re.sub(r"@font-face \{.*?\}\n?", "", picture, flags=re.DOTALL), encoding="utf-8"
    )  # nothing to fetch


if __name__ == "__main__":
    main()
