#!/usr/bin/env bash
# One would guess that a value is the same on Hydra's command line, in a configuration file and in OmegaConf's list of dotted settings.
# Files and dotted lists are read by the rules of YAML 1.1, the command line by Hydra's own grammar: 00014 is 12 in a file (base 8) and a
# text on the command line, 08 a text in both; 1:30 is 90 (base 60) and a text; `on` is true and a text; `nan` a text and a number.
# It matters because classes of GTSRB are folders 00000 to 00042: `target: 00014` in a file names class 12, without a word, and the
# same names shift only where all digits are below 8. A command line that was moved into a file is another experiment.
# Versions: hydra-core 1.3.8, omegaconf 2.3.1, pyyaml 6.0.3.
# Source: omegaconf/_utils.py get_yaml_loader (a resolver for floats alone is its own; the others are PyYAML's) and
# hydra/grammar/OverrideLexer.g4 (INT is 0 or begins with 1 to 9).
# Seen 2026-11-30 (value: command line; file; dotted list):
#   00014: '00014'; 12; 12
#   08: '08'; '08'; '08'
#   0x10: '0x10'; 16; 16
#   1:30: '1:30'; 90; 90
#   on: 'on'; True; True
#   nan: nan; 'nan'; 'nan'
#   of the 43 names 00000 to 00042 a file reads 35 as a number, 27 of them as another than they show, and 8 as a text
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment hydra-core==1.3.8 omegaconf==2.3.1 pyyaml==6.0.3

cd "$work"
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

print(*(f"{name} {version(name)}" for name in ("hydra-core", "omegaconf", "pyyaml")))
folder = Path(sys.argv[1], "conf")
folder.mkdir()
(folder / "config.yaml").write_text("x: null\n")


def ways(text):
    """What each way makes of the value: the command line, a configuration file, a dotted list."""
    (folder / "given.yaml").write_text(f"x: {text}\n")
    with initialize_config_dir(str(folder), version_base="1.3"):
        line = compose("config", [f"x={text}"]).x
        file = compose("given").x
    return line, file, OmegaConf.from_dotlist([f"x={text}"]).x


expected = {
    "00014": ("00014", 12, 12),
    "08": ("08", "08", "08"),
    "0x10": ("0x10", 16, 16),
    "1:30": ("1:30", 90, 90),
    "on": ("on", True, True),
}
for text, values in expected.items():
    found = ways(text)
    print(f"{text}: {'; '.join(map(repr, found))}")
    assert repr(found) == repr(values)
line, file, dotted = ways("nan")
print(f"nan: {line!r}; {file!r}; {dotted!r}")
assert line != line and file == dotted == "nan"

read = {number: OmegaConf.create(f"x: {number:05d}").x for number in range(43)}
numbers = {number: value for number, value in read.items() if isinstance(value, int)}
other = {number: value for number, value in numbers.items() if value != number}
print(f"of 43 names {len(numbers)} are numbers in a file, {len(other)} of them others, and {len(read) - len(numbers)} texts")
assert (len(numbers), len(other)) == (35, 27)
assert set(map(type, (ways(f"{number:05d}")[0] for number in range(43)))) == {str}
PY
