"""`python -m examples.site OUT [--repository OWNER/NAME]` makes the site in the folder OUT."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from examples.site import __doc__ as about
from minigrad.console import print_any_text

MARK = ".minigrad-site"
"""The name of a file that marks a folder as made by this command, so the command may replace it."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*/(?!\.{1,2}$)(?!.*\.git$)[\w.-]+", re.ASCII)


class RefusedError(ValueError):
    """An argument cannot be used; the message says why, and what to do."""


def checked_folder(out: Path) -> Path:
    """Return the absolute path of the folder to make.

    Raises:
        RefusedError: if the folder contains something that this command did not make.
    """
    if out.exists() and not out.is_dir():
        raise RefusedError(f"OUT is {str(out)!r}, which is a file; name a folder to make")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise RefusedError(
            f"OUT is {str(out)!r}, a folder with files that this command did not make; name a new "
            f"or an empty folder, or one with a site that this command made, which is replaced"
        )
    return out.resolve()


def checked_repository(name: str | None) -> str | None:
    """Return the name of a GitHub repository unchanged, if it is valid.

    Raises:
        RefusedError: if it cannot be the name of a repository.
    """
    if name is not None and not _REPOSITORY.fullmatch(name):
        raise RefusedError(
            f"--repository is {name!r}; write the owner and the name of a repository of GitHub, "
            f"such as octocat/minigrad, without an address before it"
        )
    return name


def main(out: str | Path, repository: str | None = None) -> Path:
    """Make the site, and return the path of its start page.

    The pages are written to a folder beside OUT, and move to OUT when all pages are complete.

    Args:
        out: the folder to make; a folder that this command made before is replaced.
        repository: OWNER/NAME on GitHub. With it, links to source files lead there, and each
            notebook has links that open it in Colab and in Binder.

    Raises:
        RefusedError: if an argument cannot be used, or a package is missing. Nothing is written.
    """
    folder = checked_folder(Path(out))
    repository = checked_repository(repository)
    try:
        from examples.site.build import build
    except ModuleNotFoundError as error:
        raise RefusedError(
            f'the package {error.name!r} is missing; run python -m pip install -e ".[site]"'
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        made, old = Path(beside) / "made", Path(beside) / "old"
        made.mkdir()
        old.mkdir()
        build(made, repository)
        folder.mkdir(exist_ok=True)
        (folder / MARK).write_text(
            "python -m examples.site made this folder, and may replace it.\n"
        )
        # A folder that is there stays, and only its content is replaced: a shell may be in it.
        for part in [*folder.iterdir()]:
            if part.name != MARK:
                part.rename(old / part.name)
        for part in [*made.iterdir()]:
            part.rename(folder / part.name)
    return folder / "index.html"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m examples.site",
        description=about.rpartition("\n\n")[0],  # without the reading order of the modules
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("out", metavar="OUT", help="the folder to make, or to make again")
    made.add_argument(
        "--repository",
        metavar="OWNER/NAME",
        help="the repository on GitHub: links to sources lead there, and each notebook can be "
        "opened in Colab and in Binder; without it, the site has pages of the sources instead",
    )
    return made


def run(arguments: Sequence[str] | None = None) -> None:
    """Make the site from a command line; print an error in one line."""
    print_any_text()
    options = parser().parse_args(arguments)
    try:
        start = main(options.out, options.repository)
    except RefusedError as error:
        print(f"examples.site: {error} (see --help)", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        sys.exit(f"examples.site: the site cannot be written: {error}")
    except KeyboardInterrupt:
        print("\nexamples.site: stopped", file=sys.stderr)
        sys.exit(130)
    print(f"The site is made. Open {start} in a browser.")


if __name__ == "__main__":
    run()
