"""Lines as CSV that every reader parts where we did."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from backdoorbench.errors import paragraph


def as_csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Header and lines; nothing for None. What could pass for the end of a line inside a text is escaped: before Python 3.13 the
    csv module quotes no lone carriage return, at which readers end a line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([paragraph(cell) if isinstance(cell, str) else cell for cell in line] for line in lines)
    return buffer.getvalue()
