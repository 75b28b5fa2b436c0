"""How errors of this package name rows, so that they all read alike."""

from __future__ import annotations

from collections.abc import Sequence


SHOWN_ROWS = 5


def name_rows(rows: Sequence[int]) -> str:
    """Name the first few of `rows`: ``"row 3"``, ``"rows 0, 4"``, ``"rows 0, 1, 2, 3, 4, ... (12 in all)"``."""
    shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS])
    if len(rows) == 1:
        return f"row {shown}"
    if len(rows) <= SHOWN_ROWS:
        return f"rows {shown}"
    return f"rows {shown}, ... ({len(rows)} in all)"


def quote(names: Sequence[str]) -> str:
    """List `names` for a message: ``"'a', 'b'"``, or ``"none"`` when there are none."""
    return ", ".join(repr(name) for name in names) if names else "none"
