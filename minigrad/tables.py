"""Format tables as text and as HTML, and numbers with units."""

from __future__ import annotations

import html
from collections.abc import Sequence


def in_flops(count: float) -> str:
    """Format a number of FLOPs with a unit: 1 kFLOP is 1000."""
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))


def in_bytes(count: float) -> str:
    """Format a number of bytes with a unit: 1 KiB is 1024."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is 1: "2 layers"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    power = sum(count >= base**larger for larger in range(1, len(units)))
    return f"{count / base**power:{'.4g' if power else '.0f'}} {units[power]}"


def aligned(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: int | None = None
) -> list[str]:
    """Return the lines of a table.

    The first `left` columns, and columns without a heading (remarks), are aligned left; all others
    are aligned right. With None, all columns are aligned left.
    """
    left = len(head) if left is None else left
    # A row with only one cell spans all columns.
    full = [head, *(row for row in rows if len(row) == len(head))]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left or not head[i] else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=len(row) > 1))
        ).rstrip()
        for row in (head, *rows)
    ]


def as_html(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML, for a notebook."""
    lines = []
    for tag, row in (("th", head), *(("td", row) for row in rows)):
        span = f' colspan="{len(head)}"' if len(row) < len(head) else ""
        cells = "".join(f"<{tag}{span}>{html.escape(cell)}</{tag}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(lines)}</table>"


def paragraph(lines: Sequence[str]) -> str:
    """Return lines of text as a paragraph of HTML."""
    return f"<p>{'<br>'.join(map(html.escape, lines))}</p>"
