"""The tables of a page of docs/ out of the commands that stand above them, so that every figure can be traced.

python scripts/fill_page.py docs/board.md OUTPUTS...

A table lies between `<!-- printed -->` and `<!-- end -->`, behind a block with its `bdx report outputs/ ...`, which is run on
OUTPUTS.
With `--output` in the command the file is written where it says, below the page's folder, and nothing is printed.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ENTRY = re.compile(r"```\n(bdx report outputs/ [^`]+?)\n```\n(?:\n<!-- printed -->\n.*?<!-- end -->\n)?", re.DOTALL)
PRINTED = "\n<!-- printed -->\n\n{}\n\n<!-- end -->\n"


def main() -> None:
    page, outputs = Path(sys.argv[1]), [str(Path(folder).resolve()) for folder in sys.argv[2:]]

    def filled(match: re.Match[str]) -> str:
        words = shlex.split(match[1].replace("\\\n", " "))
        words = [part for word in words[1:] for part in (outputs if word == "outputs/" else [word])]
        command = [sys.executable, "-m", "backdoorbench", *words]
        print(" ".join(command), file=sys.stderr)
        text = subprocess.run(command, cwd=page.parent, check=True, capture_output=True, text=True).stdout.strip()
        return f"```\n{match[1]}\n```\n" + ("" if "--output" in words else PRINTED.format(text))

    text, count = ENTRY.subn(filled, page.read_text(encoding="utf-8"))
    if not count:
        sys.exit(f"{page} holds no `bdx report outputs/ ...` in a block of its own; expected one above each table.")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
