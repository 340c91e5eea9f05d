"""The files below a folder, as whoever reads them later finds them: links to folders are followed."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: str | os.PathLike[str], suffix: str = "") -> list[Path]:
    """What `walked` finds, sorted.

    suffix  of the files that count"""
    return sorted(file for file in walked(folder) if file.name.endswith(suffix))


def walked(folder: str | os.PathLike[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """The files below a folder, and below the folders that its links lead to. Links to nothing are left out, and a link to a
    folder that holds it is not followed.

    above  what tells the folders that hold this one from others"""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError:  # no folder, gone meanwhile, or not to be read
        return
    if (here := (status.st_dev, status.st_ino)) in above:
        return
    for entry in entries:
        if entry.is_dir():
            yield from walked(entry.path, (*above, here))
        elif entry.is_file():
            yield Path(entry.path)
