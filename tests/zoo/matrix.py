"""The matrix: which check kills which mutant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from tests.zoo import hips_port, jax_port, suite, torch_port
from tests.zoo.mutant import Mutant, verdict

KILLED, UNSURE, SURVIVES, NOT_THERE = "killed", "cannot tell", "SURVIVES", "-"
PEERS = "PyTorch", "JAX", "HIPS"


def _by_gradcheck(said: Callable[..., str | None], mutant: Mutant, **options: Any) -> str:
    verdict = said(mutant, **options)
    return {"agree": SURVIVES, "disagree": KILLED, None: NOT_THERE}.get(verdict, UNSURE)


def _by(kills: Callable[[Mutant], bool | None], mutant: Mutant) -> str:
    return {True: KILLED, False: SURVIVES, None: NOT_THERE}[kills(mutant)]


def columns(quick: bool = False) -> dict[str, Callable[[Mutant], str]]:
    """The checks: gradcheck up to order 1 and 2 and with float32 inputs, the suite, and the peers.

    With `quick` there is no suite, and a peer that is not installed is left out. Beside PyTorch's
    and JAX's own checks of their functions is what our gradcheck says of the same functions.
    """
    found: dict[str, Callable[[Mutant], str]] = {
        "gradcheck 1": partial(_by_gradcheck, verdict, order=1),
        "gradcheck 2": partial(_by_gradcheck, verdict, order=2),
        "in float32": partial(_by_gradcheck, verdict, order=2, dtype=np.float32),
    }
    if not quick:
        found["suite"] = partial(_by, suite.kills)
    if find_spec("torch"):
        found["PyTorch"] = partial(_by, torch_port.kills)
        found["ours on PyTorch"] = partial(_by_gradcheck, torch_port.verdict)
    if find_spec("jax"):
        found["JAX"] = partial(_by, jax_port.kills)
        found["ours on JAX"] = partial(_by_gradcheck, jax_port.verdict)
    if find_spec("autograd"):
        found["HIPS"] = partial(_by, hips_port.kills)
    return found


@dataclass(frozen=True)
class Row:
    """A mutant, and what each check said of it."""

    mutant: Mutant
    said: dict[str, str]


def totals(rows: list[Row], column: str) -> tuple[int, int]:
    """How many mutants a check kills, of how many that it could be shown."""
    shown = [row.said[column] for row in rows if row.said[column] != NOT_THERE]
    return sum(said != SURVIVES for said in shown), len(shown)


def markdown(rows: list[Row]) -> str:
    """The table, with totals, and each peer beside us on what it can be shown."""
    names = list(rows[0].said)
    head = ["mutant", "fault", "wrong at order", *names]
    body = [[r.mutant.name, r.mutant.fault, str(r.mutant.order), *r.said.values()] for r in rows]
    last = ["killed", "", "", *("{} of {}".format(*totals(rows, name)) for name in names)]
    widths = [max(map(len, column)) for column in zip(head, *body, last, strict=True)]
    lines = [head, ["-" * width for width in widths], *body, last]
    table = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    for peer in [name for name in names if name in PEERS]:
        shown = [row for row in rows if row.said[peer] != NOT_THERE]
        killed, count = totals(shown, peer)
        ours, _ = totals(shown, "gradcheck 2")
        line = f"\nOf the {count} that {peer} can have: {peer} kills {killed}, we {ours}"
        if f"ours on {peer}" in names:
            line += f", and as functions of {peer} {totals(shown, f'ours on {peer}')[0]}"
        missed = [row.mutant.name for row in shown if row.said[peer] == SURVIVES]
        table.append(f"{line}. {peer} misses: {'; '.join(missed) or 'none'}.")
    return "\n".join(table)


def as_json(rows: list[Row]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "mutants": [
            {
                "name": row.mutant.name,
                "fault": row.mutant.fault,
                "kind": row.mutant.kind,
                "order": row.mutant.order,
                "said": row.said,
            }
            for row in rows
        ],
        "killed": {name: totals(rows, name) for name in rows[0].said},
    }
