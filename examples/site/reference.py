"""The reference of all public names: pdoc's pages, with the site's head and colours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pdoc import doc, extract, render

PACKAGES = "minigrad", "minigrad.operators", "minigrad.diagnostics", "lora"


def pages(template: Path, bar: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path of each file, from the root of the reference, and the text of the file.

    Args:
        template: the folder with what replaces parts of pdoc's own templates.
        bar: the pages that the bar at the top leads to.
    """
    render.configure(docformat="google", template_directory=template)
    render.env.globals["bar"] = bar.items()
    modules = {name: doc.Module.from_name(name) for name in extract.walk_specs(PACKAGES)}
    for module in modules.values():
        page = str(render.html_module(module, modules))
        # pdoc turns parts of a docstring, such as "Args:", into headings of the deepest level.
        page = re.sub(r"<h6 [^>]*>(.*?)</h6>", r'<p class="part">\1</p>', page)
        page = in_order(_without_dead_links(page))
        yield f"{module.fullname.replace('.', '/')}.html", page
    yield "index.html", str(render.html_index(modules))
    yield "search.js", in_order(str(render.search_index(modules)))


def in_order(text: str) -> str:
    """Return text in which the elements of sets are sorted, so that it is always the same."""
    return re.sub(
        r"(?<=set\(\{)[^{}]+(?=\}\))", lambda found: ", ".join(sorted(found[0].split(", "))), text
    )


def _without_dead_links(page: str) -> str:
    """Return a page in which links to names that the page does not show are plain text.

    pdoc links to each attribute that a text names, but does not show attributes without docstrings.
    """
    anchors = set(re.findall(r'\bid="([^"]+)"', page))
    return re.sub(
        r'<a href="#([^"]+)">(.*?)</a>',
        lambda link: link[0] if link[1] in anchors else link[2],
        page,
    )
