"""RunFolder: the folder of a training run, with `options.json`, a checkpoint and the adapter.

`options.json` holds the options of the run, and hashes of its data and of its base. A run can only
resume with the same ones, because otherwise it would not compute what an uninterrupted run does.
Rank 0 alone writes the folder. Only after an error before the first step, each rank deletes
`options.json`, because not all of them may have this error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from lora.peft import CONFIG
from lora.peft.config import has_type, in_words
from lora.peft.folder import check_no_model
from minigrad.checks import check_problems
from minigrad.distributed import world
from minigrad.io import write_atomically
from minigrad.training.checkpoint_file import read

OPTIONS, CHECKPOINT = "options.json", "checkpoint.safetensors"
DTYPE = "dtype"  # the key in options.json for the form of the base in memory


class RunFolder:
    """The folder of a run, which may begin there, or resume.

    Attributes:
        path: the folder, which need not exist yet.
        resume: whether to continue the run in it.
        options_file, checkpoint: the paths of files in it.
        began: the time at which the run began; for a run to resume, the first time.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool) -> None:
        self.path, self.resume = Path(path), resume
        self.options_file, self.checkpoint = self.path / OPTIONS, self.path / CHECKPOINT
        self.began = datetime.fromisoformat(world().on_first(self._beginning, "train"))

    def _beginning(self) -> str:
        if self.resume and self.options_file.is_file():
            return str(_saved_run(self.options_file)["time"])
        return datetime.now().isoformat()

    def check(self, facts: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Check that a run can begin here, or resume with the same facts; only rank 0 calls this.

        Args:
            facts: the options, hashes of data, base and beginning of the run.
            defaults: the options of a run in whose file they are missing.

        Raises:
            OSError: if the folder is a file or cannot be written, or has no run to resume.
            ValueError: if it has a model or another run, or the facts differ from those of the run.
        """
        known = json.loads(json.dumps(facts))  # tuples become lists, as in the file
        name = os.fspath(self.path)
        check_no_model(self.path)
        if not self.resume:
            if self.options_file.exists():
                raise ValueError(
                    f"{name!r} has {OPTIONS} of an earlier run; continue it with resume=True "
                    f"(--resume), or name another folder"
                )
            if (self.path / CONFIG).exists():
                raise ValueError(f"{name!r} is the folder of an adapter; name another one")
            return
        if not self.options_file.is_file():
            raise FileNotFoundError(
                f"{name!r} has no {OPTIONS}, so there is no run to resume; begin one without resume"
            )
        runs = _saved_run(self.options_file), known
        old, new = (
            {**defaults, **run["options"], **run["data"], "base": run["base"]} for run in runs
        )
        changed = [
            f"{key}: it was {old.get(key)!r:.60}, and is {new.get(key)!r:.60}"
            for key in {**old, **new}
            if old.get(key) != new.get(key) and key != "save_every"
        ]
        check_problems(
            f"give the same base, data and options, or begin a run in another folder, since the "
            f"run in {name!r} cannot continue with other data or options",
            changed,
        )

    def steps_saved(self) -> int:
        """Return the number of steps before the last checkpoint; 0 if there is none yet."""
        return len(read(self.checkpoint)["steps"]) if self.checkpoint.exists() else 0

    @contextmanager
    def running(self, facts: Mapping[str, Any], steps: Sequence[Any]) -> Iterator[None]:
        """Write the facts, and run the `with` block, which trains.

        `steps` is the list that grows with each step. After an error before the first one,
        `options.json` is deleted, so there is no run to resume.

        Raises:
            OSError: as on a full disk; if the run can be resumed, the message says so.
            ValueError: if another run has begun here in the meantime.
            KeyboardInterrupt: after Ctrl-C; the message says that the run can be resumed.
        """
        ranks = world()
        if not self.resume:
            ranks.on_first(partial(self._claim, facts), "train")
        try:
            content = json.dumps(facts, indent=2).encode()
            ranks.on_first(lambda: write_atomically(self.options_file, content), "train")
            yield
        except KeyboardInterrupt as error:
            if error.args:  # it says what to do
                raise
            there = os.fspath(self.path)
            raise KeyboardInterrupt(f"stopped; resume continues the run in {there!r}") from error
        except Exception as error:
            if not (self.resume or steps or (self.path / CONFIG).exists()):
                self.options_file.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno and self.options_file.is_file():
                there = f"the files in {os.fspath(self.path)!r} are complete, and resume continues"
                raise OSError(error.errno, f"{error.strerror}; {there} from them") from error
            raise

    def _claim(self, facts: Mapping[str, Any]) -> None:
        try:
            self.options_file.touch(exist_ok=False)
        except FileExistsError:  # another run began while this one read its rows
            self.check(facts, {})
            raise


def _saved_run(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the options, data hashes, base and beginning of a run from `options.json`.

    A ValueError is raised if the file has none of a run.
    """
    try:
        found = json.loads(Path(file).read_bytes())
        data, base = dict(found.get("data", {})), found.get("base")
        now = datetime.now().isoformat()
        began = datetime.fromisoformat(found.get("time", now)).isoformat()
        return {"options": dict(found["options"]), "data": data, "base": base, "time": began}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(file)!r} has no options of a run: {error!r:.200}; give the {OPTIONS} of "
            f"another run, or begin a run in another folder"
        ) from None
    except OSError as error:
        raise type(error)(
            error.errno, f"{error.strerror}; give the {OPTIONS} of a run", os.fspath(file)
        ) from None


def options_of(file: str | os.PathLike[str], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run from `options.json`, among them `DTYPE`.

    `kinds` has the type of each option of `train`, by name. A ValueError is raised if the file has
    no options, an unknown one, or one with a wrong type.
    """
    found: dict[str, Any] = _saved_run(file)["options"]
    if unknown := found.keys() - {*kinds, DTYPE}:
        raise ValueError(f"{os.fspath(file)!r} has unknown options: {sorted(map(str, unknown))}")
    for name, value in found.items():
        kind = str if name == DTYPE else kinds[name]
        if not has_type(kind, value):
            wanted = in_words(kind)
            raise ValueError(f"in {os.fspath(file)!r} {name} is {wanted}, not {value!r:.60}")
    return found
