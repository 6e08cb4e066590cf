"""Links on the site: turn a link to a file of the repository into a link to its page."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

ROOT = Path(__file__).parents[2]
PICTURES = (".png", ".svg")


def slug(heading: str) -> str:
    """Return the name by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@dataclass
class Links:
    """Where the links of the repository's texts lead on the site.

    Attributes:
        pages: the page of each file that has one. Both are paths with slashes: from the root of
            the repository, and from the root of the site.
        repository: OWNER/NAME on GitHub; links to all other files lead there.
        copies: the other files and folders to which there are links, each with its path on the
            site. Without a repository, sources are among them.
        root: the folder of the repository.
    """

    pages: Mapping[str, str]
    repository: str | None = None
    copies: dict[str, str] = field(default_factory=dict)
    root: Path = ROOT

    def resolve(self, href: str, source: str, page: str) -> str | None:
        """Return the link to write on a page, or None if it would be dead; note files to copy.

        Args:
            href: the link in the text.
            source: the path of the text in the repository.
            page: the path of the page on the site.
        """
        if re.match(r"[a-z][a-z0-9+.-]*:|//", href, re.IGNORECASE):
            return href
        path, _, fragment = href.partition("#")
        anchor = f"#{slug(unquote(fragment).replace('-', ' '))}" if fragment else ""
        if not path:
            return anchor or None
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(path)))
        if file.startswith("..") or not (self.root / file).exists():
            return None
        if file in self.pages:
            return relative(self.pages[file], page) + anchor
        if file.endswith(PICTURES):
            self.copies[file] = f"files/{file}"
        elif self.repository is not None:
            kind = "tree" if (self.root / file).is_dir() else "blob"
            return f"https://github.com/{self.repository}/{kind}/HEAD/{quote(file)}"
        elif (self.root / file).is_dir():
            self.copies[file] = f"source/{file}/index.html"
        else:
            self.copies[file] = f"source/{file}.html"
        return relative(self.copies[file], page)


def relative(target: str, page: str) -> str:
    """Return the link from one page of the site to another."""
    return quote(posixpath.relpath(target, posixpath.dirname(page) or "."))
