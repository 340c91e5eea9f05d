"""How wide text is in LaTeX's Computer Modern, in points: an estimate that is never too small, without LaTeX."""

from __future__ import annotations

import unicodedata

TEXT = 345.0  # of a line of `article` at 10 pt
SMALL, SCRIPT = 9.0, 7.0  # points of \\small and \\scriptsize there
WIDTHS = {  # in ems, by cmr9 -> the letters that are no wider
    0.20: "\u2009", 0.29: "!',.:;[]`il·", 0.35: "fj- ", 0.41: "I()trs", 0.46: "cez", 0.52: '?"$*/0123456789^ago{}~_†‡§¶↑↓–',
    0.58: "kqvxyJSbdhnpu", 0.68: "ZLF", 0.76: "EPBCTwR", 0.81: "AHNUVXYDGK&+=@OQ<>\\\\−±≤", 0.86: "#%m",
}  # fmt: skip
LETTERS = {letter: width for width, letters in WIDTHS.items() for letter in letters}
WIDEST = 1.06
BOLD, FINE = 1.22, 1.14  # what bold (but for "!", 1.27), and cmr7 at its size, are wider at most


def width(text: str, size: float = SMALL, is_bold: bool = False) -> float:
    """Of a line of text."""
    ems = sum(LETTERS.get(unicodedata.normalize("NFD", letter)[0], WIDEST) for letter in text)
    return ems * size * (BOLD if is_bold else 1) * (FINE if size == SCRIPT else 1)


def wrapped(text: str, room: float) -> list[str]:
    """The text in lines that are no wider than the room, as far as its words allow."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and width(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def longest_word(text: str) -> float:
    """The width of the widest of its words."""
    return max(width(word) for word in text.split(" "))
