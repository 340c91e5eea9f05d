"""What a user can get wrong, and the one paragraph that says so.

    BdxError                a user's mistake: found, expected, what to do; exit code 2, no traceback
    ├── ConfigError         unknown option or key, wrong type, value out of range
    │   └── IdleError       a setting that was given in vain: what stands beside it switches it off
    ├── DataError           data set missing, empty, corrupt, or too small for what is asked
    ├── ModelError          network unfit for the resolution or the method; checkpoint of another shape
    ├── PairingError        a defense needs what the attack does not leave
    ├── DeviceError         device absent, or out of memory
    ├── StorageError        folder not writable, disk full
    └── TrainingError       the loss left the finite numbers, or an infection is broken

Anything else that escapes is a bug and keeps its traceback.
"""

import math
import os
from collections.abc import Iterable

USER_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130  # exit codes
LONGEST_NAME = 40  # bytes: a folder is called after up to five of them, and a file system takes 255


class BdxError(Exception):
    """A user's mistake. The message is one paragraph: what was found, what was expected, what to do."""


class ConfigError(BdxError):
    """Unknown option or key, wrong type, or a value out of range."""


class IdleError(ConfigError):
    """A setting that was given in vain: what stands beside it switches it off."""


class DataError(BdxError):
    """A data set that is missing, empty, corrupt, or too small for what is asked."""


class AbsentData(DataError):
    """A data set that is not where its root says."""


class ModelError(BdxError):
    """A network unfit for the resolution or the method, or a checkpoint of another shape."""


class PairingError(BdxError):
    """A defense that needs what the attack does not leave behind."""


class DeviceError(BdxError):
    """A device that is absent or out of memory."""


class StorageError(BdxError):
    """A folder that cannot be written, or a full disk."""


class TrainingError(BdxError):
    """A loss that left the finite numbers, or an infection too broken to purify."""


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".distcp")  # how files of weights end


def no_weights(named: str, path: "str | os.PathLike[str]") -> ModelError:
    """What to say of a file of weights that is none. named: as a message calls it."""
    expected = "expected a file of weights, such as safetensors, .pt or .pth"
    if not os.path.isdir(path):
        return ModelError(f"{named} is no file; {expected}. Name another.")
    if any(name.endswith(".distcp") for name in os.listdir(path)):
        return ModelError(
            f"{named} is a folder of torch.distributed.checkpoint; {expected}. Join its files: "
            f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE), and name that file."
        )
    inside = sorted(name for name in os.listdir(path) if name.endswith(WEIGHTS))
    remedy = f"Name one of those in it: {few(inside)}." if inside else "Name another."
    return ModelError(f"{named} is a folder; {expected}. {remedy}")


def nearest(name: str, options: Iterable[str], most: int = 3) -> list[str]:
    """Up to `most` options close to `name`, nearest first: case ignored, a swap of neighbours counts as one edit."""
    ranked = sorted((_edits(name.lower(), option.lower()), option) for option in options)
    return [option for edits, option in ranked if edits <= max(1, len(name) // 2)][:most]


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """` Did you mean 'fst' or 'ft'?`, with its leading blank, or nothing where no option is close."""
    close = [f"'{option}'" for option in nearest(name, options)]
    return f" Did you mean {join_words(close, 'or')}?" if close else ""


def shown(value: object, most: int = 80) -> str:
    """A value that somebody gave, as a message quotes it: at most `most` characters of its repr."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def paragraph(text: str) -> str:
    """`text` on one line: what a name or another library's message has of line breaks and control characters is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """What another library says, in one line without its last stop; its kind where it says nothing."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return (f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first).rstrip(".")


def join_words(words: list[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def quantity(count: int, noun: str, plural: str = "") -> str:
    """`1 run`, `2 runs`, `1,200 runs`; `2 classes` where the plural is said."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def few(words: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 5 more`."""
    listed = list(words)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def check_range(setting: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        said = f"{value:g}" if abs(value) < 1e15 or isinstance(value, float) else shown(value, 24)
        raise ConfigError(f"{setting} is {said}; expected a number {bounds}. Change {setting}.")


def part(setting: str, share: float, count: int, what: str) -> int:
    """How many a share of them is, rounded. Raises DataError where it is to be some, and is none.

    what  they are, in the plural"""
    found = round(share * count)
    if share and not found:
        raise DataError(
            f"{setting} is {share:g}, none of {count:,} {what}; expected one at least, or a share of 0. Raise {setting}."
        )
    return found


def check_name(setting: str, name: str) -> None:
    """Raises ConfigError unless `name` can be a part of the names of folders, whatever the file system."""
    if not name or name.startswith(".") or not name.isprintable() or any(c in name for c in "/\\"):
        reason = "names folders of the outputs: expected printable characters without / or \\, no dot in front"
    elif len(name.encode()) > LONGEST_NAME:
        reason = f"names folders of the outputs, which bears {LONGEST_NAME} bytes"
    else:
        return
    raise ConfigError(f"{setting} is {shown(name)}; it {reason}. Rename it.")


def _edits(a: str, b: str) -> int:
    """Optimal string alignment distance: insertions, deletions, substitutions, swaps of neighbours."""
    table = [[i + j if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = a[i - 1] != b[j - 1]
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + change)
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i][j] = min(table[i][j], table[i - 2][j - 2] + 1)
    return table[-1][-1]
