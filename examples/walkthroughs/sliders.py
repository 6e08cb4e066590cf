"""Pages with sliders in a notebook: HTML that contains its data, in a frame, without a network.

A module that makes such a page computes all its values in Python, and the page only looks them up.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1a1a1a, #e8e8e8);
  --paper: light-dark(#ffffff, #16181b); --soft: light-dark(#767676, #9a9a9a);
  --line: light-dark(#d0d0d0, #44484d); --blue: light-dark(#0072b2, #56b4e9);
  --orange: light-dark(#d55e00, #ff9b57); }
:root[data-theme=light] { color-scheme: light; }
@media screen { :root[data-theme=dark] { color-scheme: dark; } }
* { box-sizing: border-box; }
h1 { margin: 0 0 4px; font-size: 1rem; }
body { margin: 0; padding: 4px; color: var(--ink); background: var(--paper);
  font: 15px/1.4 system-ui, sans-serif; }
label { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; margin: 4px 0; }
label output { font-variant-numeric: tabular-nums; }
input[type=range] { flex: 1 1 160px; min-width: 120px; accent-color: var(--blue); }
input[type=range]:focus-visible { outline: 3px solid var(--orange); outline-offset: 2px; }
svg, canvas { display: block; max-width: 100%; }
"""
"""Colours that are readable on a light and on a dark background, and the form of sliders.

The page follows the reader's system, or `data-theme` if the page around it sets that attribute.
"""

READY = """
const fit = () => {
  const frame = window.frameElement;  // null where the reader's program shuts the frame off
  if (!frame) return;
  frame.style.height = `${Math.ceil(document.body.getBoundingClientRect().height)}px`;
  document.documentElement.style.overflowY = "hidden";
};
new ResizeObserver(fit).observe(document.body);
fit();
document.documentElement.dataset.ready = "";
"""
"""The last code of each page: set the height of the frame, and mark the page as ready."""


@dataclass(frozen=True, repr=False)
class Page:
    """A page that a notebook shows in a frame.

    Attributes:
        title: a sentence that says what the page shows, for readers who do not see it.
        source: the HTML.
        height: the height of the frame in pixels, used if the page cannot set it.
    """

    title: str
    source: str
    height: int

    def __repr__(self) -> str:
        return f"<a page with sliders: {self.title}>"

    def _repr_html_(self) -> str:
        """Return the page in a frame; a frame with `srcdoc` needs no other file."""
        return (
            f'<iframe title="{html.escape(self.title)}" srcdoc="{html.escape(self.source)}" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )


def page(title: str, data: Any, style: str, body: str, script: str, height: int) -> Page:
    """Return a page from its parts.

    Args:
        title: a sentence that says what the page shows.
        data: values for JSON; the script reads them as `DATA`.
        style: CSS, added after `STYLE`.
        body: HTML.
        script: JavaScript, which runs after the body exists.
        height: the height of the frame in pixels, used if the page cannot set it.
    """
    values = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    values = values.replace("<", "\\u003c")  # otherwise a text in the data could end the script
    source = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{style}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
<script>
"use strict";
const DATA = {values};
{script}{READY}</script>
</body>
</html>
"""
    return Page(title, source, height)
