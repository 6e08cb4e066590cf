"""A notebook as HTML, with the outputs that are stored in it."""

from __future__ import annotations

import ast
import base64
import html
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from examples.site.markdown import Document, coloured, plain
from examples.walkthroughs.notebooks import Cell, Head, Notebook, exercises, head_of, read

_DRAWS = {"title", "set_title", "suptitle"}


@dataclass
class Rendered:
    """A notebook of the course, and its page.

    Attributes:
        path: the file of the notebook.
        document: the Markdown of its page.
        head: the parts of its first cell.
        count: the number of its exercises.
        body: the cells after the head, as HTML.
        frames: pages in frames, which a reader can also open alone, by their paths on the site.
    """

    path: Path
    document: Document
    head: Head
    count: int = 0
    body: str = ""
    frames: dict[str, str] = field(default_factory=dict)


def rendered(path: Path, document: Document) -> Rendered:
    """Return a notebook with its cells as HTML."""
    notebook = read(path)
    made = Rendered(path, document, head_of(notebook), len(exercises(notebook)))
    made.body = "\n".join(_sections(notebook["cells"][1:], notebook, made))
    return made


def _sections(cells: Sequence[Cell], notebook: Notebook, made: Rendered) -> Iterator[str]:
    """Yield the cells as HTML; an exercise and the cell to write its answer in are one section."""
    tasks = exercises(notebook)
    for i, cell in enumerate(cells):
        if cell in tasks:
            number = tasks.index(cell) + 1
            both = [_cell(part, made) for part in cells[i : i + 2] if part is cell or _asks(part)]
            yield f'<section class="exercise" id="exercise-{number}">\n{"".join(both)}</section>'
        elif not _asks(cell):
            yield _cell(cell, made)


def _asks(cell: Cell) -> bool:
    """Return whether the reader writes an answer into this cell, and its last line checks it."""
    last = str(cell["source"]).rpartition("\n")[2]
    return bool(cell["cell_type"] == "code" and last.startswith("check("))


def _cell(cell: Cell, made: Rendered) -> str:
    """Return a cell as HTML."""
    if cell["cell_type"] == "code":
        return _code(cell, made)
    return f'<div class="prose">\n{made.document.html(cell["source"])}</div>\n'


def _code(cell: Cell, made: Rendered) -> str:
    """Return a cell with code, and its outputs."""
    headings = made.document.headings
    about = picture_title(cell["source"]) or (headings[-1].text if headings else made.head.title)
    parts = [coloured(cell["source"])]
    parts += [_output(output, about, made) for output in cell["outputs"]]
    return f'<div class="cell">\n{"".join(parts)}</div>'


def _data(output: Cell, kind: str) -> str:
    """Return the data of this kind in an output, or an empty text."""
    return str(output.get("data", {}).get(kind, ""))


def _output(output: Cell, about: str, made: Rendered) -> str:
    """Return one output as HTML, in the first form that it has: HTML, SVG, PNG, text."""
    if output["output_type"] == "stream":
        return f'<pre class="output">{plain(output["text"])}</pre>\n'
    if page := _data(output, "text/html"):
        return f'<div class="output rich">{_framed(page, about, made)}</div>\n'
    for kind in ("image/svg+xml", "image/png"):
        if picture := _data(output, kind):
            image = _picture(kind, picture, about)
            return f'<div class="output picture">{image}</div>\n'
    return f'<pre class="output">{plain(_data(output, "text/plain"))}</pre>\n'


def _picture(kind: str, picture: str, about: str) -> str:
    """Return a picture with its data in the page; `about` describes it for screen readers."""
    size = ""
    if kind == "image/png":
        data = picture.replace("\n", "")
        width, height = struct.unpack(">II", base64.b64decode(data[:32])[16:24])
        size = f' width="{width}" height="{height}"'
    else:
        data = base64.b64encode(picture.encode()).decode()
    return f'<img src="data:{kind};base64,{data}" alt="{html.escape(about)}"{size} loading="lazy">'


class _Frames(HTMLParser):
    """Finds the frames in HTML: the text of each tag, and its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a frame."""
        if tag == "iframe":
            attributes = {name: value or "" for name, value in attrs}
            self.found.append((str(self.get_starttag_text()), attributes))


def _framed(page: str, about: str, made: Rendered) -> str:
    """Return the HTML of an output, in which each frame has a title and can be opened alone."""
    for tag, attributes in _Frames(page).found:
        inside = attributes.get("srcdoc")
        if inside is None and not attributes.get("src", "").startswith(("https:", "data:")):
            return (
                '<p class="absent">This cell writes a page and shows it. '
                "Run the notebook to see the page here.</p>"
            )
        # The page is ours, and uses the colours of the page around it; a sandbox would forbid it.
        attributes.pop("sandbox", None)
        attributes = {"title": about, "loading": "lazy", **attributes}
        words = (f'{name}="{html.escape(value)}"' for name, value in attributes.items())
        page = page.replace(tag, f"<iframe {' '.join(words)}>")
        if inside is not None:
            name = f"{Path(made.document.page).stem}-page-{len(made.frames) + 1}.html"
            made.frames[str(Path(made.document.page).with_name(name))] = inside
            page += f'<p class="alone"><a href="{name}">Open this page alone</a></p>'
    return page


def picture_title(code: str) -> str:
    """Return the titles that code gives to its pictures, if they are string constants."""
    titles = []
    for node in ast.walk(ast.parse(_without_magic(code))):
        if not isinstance(node, ast.Call):
            continue
        named = [word.value for word in node.keywords if word.arg in _DRAWS]
        if isinstance(node.func, ast.Attribute) and node.func.attr in _DRAWS:
            named += node.args[:1]
        titles += [
            value.value
            for value in named
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        ]
    return "; ".join(dict.fromkeys(" ".join(title.split()) for title in titles))


def _without_magic(code: str) -> str:
    """Return code without the lines that only IPython understands."""
    return "\n".join(line for line in code.split("\n") if not line.startswith(("%", "!")))
