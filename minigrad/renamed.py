"""Old names of modules: importing one raises an error that gives the new one."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


@cache
def since_0_2() -> dict[str, str]:
    """Return the modules of version 0.1, each with where its contents are since version 0.2."""
    with Path(__file__).with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        return {row["old"]: row["new"] for row in csv.DictReader(file)}


class _OldNames(MetaPathFinder):
    """A finder that Python asks when no module of a name was found."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith(("minigrad.", "lora.")) and name in since_0_2():
            raise ModuleNotFoundError(
                f"there is no module `{name}` since minigrad 0.2; its contents are in "
                f"{since_0_2()[name]}",
                name=name,
            )
        return None


sys.meta_path.append(_OldNames())
