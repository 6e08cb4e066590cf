"""The pages of the site, one after the other, and the files that they need."""

from __future__ import annotations

import ast
import re
import shutil
import struct
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import minigrad as mg
from examples.site import gallery, hosts, reference
from examples.site.links import ROOT, Links, relative
from examples.site.markdown import Document, Heading, coloured
from examples.site.notebook import Rendered, rendered
from examples.walkthroughs.notebooks import walkthroughs
from minigrad.progress import progress_bar

TEMPLATE = Path(__file__).with_name("template")
BAR = {
    "Course": "index.html#course",
    "Gallery": "gallery.html",
    "Guide": "guides/index.html",
    "Diagnostics": "guides/diagnostics.html",
    "LoRA": "guides/lora.html",
    "Benchmarks": "guides/benchmarks.html",
    "Reference": "reference/index.html",
}
GUIDES = {
    "README.md": "guides/index.html",
    "minigrad/diagnostics/README.md": "guides/diagnostics.html",
    "lora/README.md": "guides/lora.html",
    "minigrad/distributed/README.md": "guides/distributed.html",
    "tests/benchmarks/README.md": "guides/benchmarks.html",
    "examples/walkthroughs/README.md": "course/index.html",
    "examples/walkthroughs/TEACHING.md": "course/teaching.html",
}
"""The page of each guide, by the path of its Markdown."""

_SHOWN = {".py", ".md", ".js", ".css", ".html", ".toml", ".json", ".txt", ".c", ".cu"}


class File(NamedTuple):
    """A file in the list of a folder: its name, the link to its page, and what it is about."""

    name: str
    page: str
    about: Markup


def build(folder: Path, repository: str | None) -> None:
    """Write the site to a folder, which is empty.

    Args:
        folder: the root of the site.
        repository: OWNER/NAME on GitHub, or None.
    """
    site = Site(folder, repository)
    with progress_bar(what="making the site", unit="page", shown=True) as bar:
        for page, text in site.pages():
            (folder / page).parent.mkdir(parents=True, exist_ok=True)
            (folder / page).write_text(text, "utf-8")
            bar.set_postfix_str(page)
            bar.update()
    if repository is not None:
        hosts.write_copies(folder, site.notebooks, repository, site.links)


class Site:
    """The pages, each made when it is asked for."""

    def __init__(self, folder: Path, repository: str | None) -> None:
        self.folder = folder
        self.repository = repository
        self.notebooks = walkthroughs()
        courses = {_source(path): f"course/{path.stem}.html" for path in self.notebooks}
        self.links = Links({**GUIDES, **courses}, repository)
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )

    def pages(self) -> Iterator[tuple[str, str]]:
        """Yield the path of each page and file, from the root of the site, and its text."""
        for name in ("site.css", "site.js"):
            yield f"assets/{name}", (TEMPLATE / name).read_text("utf-8")
        course = []
        for path in self.notebooks:
            source = _source(path)
            course.append(rendered(path, Document(source, self.links.pages[source], self.links)))
            yield from course[-1].frames.items()
        for i, notebook in enumerate(course):
            yield notebook.document.page, self._notebook(course, i)
        for source, page in GUIDES.items():
            yield page, self._guide(source, page)
        yield "index.html", self._start(course)
        yield "gallery.html", self._gallery()
        for name, text in reference.pages(TEMPLATE, BAR):
            yield f"reference/{name}", text
        yield from self._copies()

    def _page(self, template: str, page: str, title: str, **values: Any) -> str:
        """Return a page that a template makes."""
        values = {"contents": [], "current": "", "bar": BAR.items(), **values}
        root = "../" * page.count("/")
        made = self._templates.get_template(template).render(
            title=title, root=root, repository=self.repository, **values
        )
        return str(made)

    def _notebook(self, course: list[Rendered], i: int) -> str:
        """Return the page of a notebook."""
        this = course[i]
        document, head = this.document, this.head
        neighbours = [
            {"title": other.head.title, "page": relative(other.document.page, document.page)}
            if other
            else None
            for other in (course[i - 1] if i else None, *course[i + 1 : i + 2], None)
        ]
        opened = hosts.hosts(self.repository, this.path.name) if self.repository else []
        return self._page(
            "notebook.html",
            document.page,
            head.title,
            current="Course",
            contents=_contents(document.headings),
            head=head,
            introduction=Markup(document.html(head.introduction)),
            objectives=Markup(document.line(head.able_to)),
            needs=Markup(document.line(head.needs)),
            body=Markup(this.body),
            file=document.source,
            hosts=opened,
            previous=neighbours[0],
            next=neighbours[1],
        )

    def _guide(self, source: str, page: str) -> str:
        """Return the page of a README."""
        document = Document(source, page, self.links)
        body = Markup(document.html((ROOT / source).read_text("utf-8")))
        title, *parts = document.headings
        current = next((name for name, target in BAR.items() if target == page), "")
        contents = _contents(parts)
        return self._page(
            "base.html", page, title.text, body=body, contents=contents, current=current
        )

    def _start(self, course: list[Rendered]) -> str:
        """Return the start page, and write the step-through page that it shows."""
        rows = []
        for notebook in course:
            text = Document(notebook.document.source, "index.html", self.links)
            rows.append(
                {
                    "head": notebook.head,
                    "page": notebook.document.page,
                    "count": notebook.count,
                    "objectives": Markup(text.line(notebook.head.able_to)),
                    "needs": Markup(text.line(notebook.head.needs)),
                }
            )
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        versions = [
            name.rpartition(" ")[2]
            for name in project["classifiers"]
            if name.startswith("Programming Language :: Python :: 3.")
        ]
        readme = (ROOT / "examples/walkthroughs/README.md").read_text("utf-8")
        install = re.search(r"python -m pip install [^`\n]*jupyter lab [^`\n]*", readme)
        if install is None:
            raise ValueError("examples/walkthroughs/README.md does not say how to open the course")
        return self._page(
            "start.html",
            "index.html",
            "",
            current="Course",
            course=rows,
            live=step_through(self.folder / "step-through.html"),
            pythons=f"{', '.join(versions[:-1])} or {versions[-1]}",
            install=Markup(coloured(install[0].replace(" && ", "\n"), "sh")),
        )

    def _gallery(self) -> str:
        """Return the gallery."""
        document = Document("README.md", "gallery.html", self.links)
        demos = []
        for demo in gallery.demos():
            width, height = struct.unpack(">II", (ROOT / demo.picture).read_bytes()[16:24])
            demos.append(
                {
                    "name": demo.name,
                    "link": self.links.resolve(demo.picture, "README.md", "gallery.html"),
                    "alt": demo.alt,
                    "width": width,
                    "height": height,
                    "purpose": Markup(document.line(demo.purpose)),
                    "text": Markup(document.html(demo.text)),
                    "commands": Markup(coloured(demo.commands, "sh")),
                }
            )
        return self._page("gallery.html", "gallery.html", "Gallery", current="Gallery", demos=demos)

    def _copies(self) -> Iterator[tuple[str, str]]:
        """Yield the pages of sources that were linked to; copy the pictures."""
        for path, place in list(self.links.copies.items()):
            if place.startswith("files/"):
                (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, self.folder / place)
            elif (ROOT / path).is_dir():
                yield place, self._listing(path, place)
        for path, place in self.links.copies.items():
            if (ROOT / path).is_file() and not place.startswith("files/"):
                language = {".py": "python", ".js": "javascript"}.get(Path(path).suffix, "text")
                body = Markup(coloured((ROOT / path).read_text("utf-8"), language))
                yield place, self._page("source.html", place, path, body=body, files=[])

    def _listing(self, path: str, page: str) -> str:
        """Return the page of a folder; its files get pages too."""
        document = Document(f"{path}/__init__.py", page, self.links)
        package = ROOT / path / "__init__.py"
        body = document.html(_docstring(package)) if package.is_file() else ""
        files = []
        for file in sorted((ROOT / path).rglob("*")):
            name = file.relative_to(ROOT / path).as_posix()
            if file.suffix in _SHOWN and "__pycache__" not in name:
                link = self.links.resolve(name, document.source, page)
                about = "" if file == package else _docstring(file).partition("\n")[0]
                files.append(File(name, str(link), Markup(document.line(about))))
        return self._page("source.html", page, path, body=Markup(body), files=files)


def step_through(path: Path) -> str:
    """Write a page that steps through a small backward pass, and return its text."""
    a = mg.tensor(0.5, dtype="float64", requires_grad=True)
    b = mg.tensor(2.0, dtype="float64", requires_grad=True)
    y = a * b + mg.tanh(a)
    mg.viz.explore(y, path, title="y = a * b + tanh(a)")
    return path.read_text("utf-8")


def _source(path: Path) -> str:
    """Return the path of a file in the repository, with slashes."""
    return path.relative_to(ROOT).as_posix()


def _contents(headings: list[Heading]) -> list[Heading]:
    """Return the headings for the table of contents of a page."""
    return [heading for heading in headings if heading.level in (2, 3)]


def _docstring(path: Path) -> str:
    """Return the docstring of a module, or an empty text."""
    if path.suffix != ".py":
        return ""
    return ast.get_docstring(ast.parse(path.read_bytes())) or ""
