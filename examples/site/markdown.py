"""Markdown as HTML: with MathML for formulas, colours for code, and links that lead to pages."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.filter import simplefilter
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Generic, Keyword, Name, Number, Operator, String, Text

from examples.site.links import Links, slug


class Heading(NamedTuple):
    """A heading of a page: its level from 1 to 6, its text, and the anchor that leads to it."""

    level: int
    text: str
    anchor: str


@dataclass
class Document:
    """The Markdown of one page, which may have several parts.

    Attributes:
        source: the path of the text's file in the repository.
        page: the path of the page on the site.
        links: the targets of links on the site.
        headings: the headings so far, in order.
    """

    source: str
    page: str
    links: Links
    headings: list[Heading] = field(default_factory=list)

    def html(self, text: str) -> str:
        """Return a part of the page as HTML."""
        tokens = _PARSER.parse(text)
        return str(_PARSER.renderer.render(list(self._mended(tokens)), _PARSER.options, {}))

    def line(self, text: str) -> str:
        """Return a line of text as HTML, without a paragraph around it."""
        (inline,) = _PARSER.parseInline(text)
        tokens = [*self._linked(inline.children or [])]
        return str(_PARSER.renderer.render(tokens, _PARSER.options, {}))

    def _mended(self, tokens: Sequence[Token]) -> Iterator[Token]:
        """Yield tokens with anchors at headings, links to pages, and no empty heads of tables."""
        is_head_empty = False
        for i, token in enumerate(tokens):
            if token.type == "heading_open":
                token.attrSet("id", self._anchor(int(token.tag[1]), tokens[i + 1]))
            if token.type == "th_open":
                _name(token, tokens[i + 1], tokens[i + 2])
            if token.children:
                token.children = list(self._linked(token.children))
            if token.type == "thead_open":
                end = next(j for j in range(i, len(tokens)) if tokens[j].type == "thead_close")
                is_head_empty = not any(other.content for other in tokens[i:end])
            if not is_head_empty:
                yield token
            is_head_empty = is_head_empty and token.type != "thead_close"

    def _anchor(self, level: int, inline: Token) -> str:
        """Note a heading, and return a unique anchor for it."""
        children = inline.children or []
        text = "".join(part.content for part in children if part.type in ("text", "code_inline"))
        anchor, n = slug(text), 0
        while any(anchor == heading.anchor for heading in self.headings):
            anchor = f"{slug(text)}-{(n := n + 1)}"
        self.headings.append(Heading(level, text, anchor))
        return anchor

    def _linked(self, tokens: Sequence[Token]) -> Iterator[Token]:
        """Yield tokens in which links lead to pages; a link that would be dead becomes text."""
        is_dead = False
        for token in tokens:
            if token.type == "link_open":
                href = self.links.resolve(str(token.attrGet("href")), self.source, self.page)
                is_dead = href is None
                token.attrSet("href", href or "")
            elif token.type == "image":
                href = self.links.resolve(str(token.attrGet("src")), self.source, self.page)
                if href is None:
                    raise ValueError(f"{self.source}: there is no picture {token.attrGet('src')!r}")
                token.attrSet("src", href)
                token.attrSet("loading", "lazy")
            if not (is_dead and token.type in ("link_open", "link_close")):
                yield token
            is_dead = is_dead and token.type != "link_close"


_COLOURED = (
    *(Comment, String, Number, Keyword, Operator.Word, Generic.Prompt, Generic.Output),
    *(Name.Function, Name.Class, Name.Decorator, Name.Namespace),
)
"""The kinds of tokens that the style sheet has a colour for."""


@simplefilter  # type: ignore[untyped-decorator]
def _coarse(_: object, lexer: object, tokens: Iterable[Any], options: object) -> Iterator[Any]:
    """Yield the tokens of code with a few kinds only, which makes pages half as large."""
    for kind, text in tokens:
        yield next((wide for wide in _COLOURED if kind in wide), Text), text


def _name(opens: Token, inline: Token, closes: Token) -> None:
    """Make an empty head of a table a plain cell; give a head that is a formula a text too."""
    if not inline.content:
        opens.tag = closes.tag = "td"
    elif inline.children and all(part.type == "math_inline" for part in inline.children):
        name = plain(inline.content.replace("$", ""))
        hidden = f'<span class="visually-hidden">{name}</span><span aria-hidden="true">'
        before, after = Token("html_inline", "", 0), Token("html_inline", "", 0)
        before.content, after.content = hidden, "</span>"
        inline.children = [before, *inline.children, after]


def coloured(code: str, language: str = "python") -> str:
    """Return code as HTML, in a `pre` element, with classes for the colours of its parts."""
    if language == "python" and code.lstrip().startswith(">>>"):
        language = "pycon"
    lexer = get_lexer_by_name(language or "text", stripnl=False)
    lexer.add_filter(_coarse())
    inside = str(highlight(code, lexer, HtmlFormatter(nowrap=True)))
    return f'<pre class="highlight"><code>{inside}</code></pre>\n'


def formula(text: str, is_block: bool) -> str:
    """Return a formula of LaTeX as MathML.

    Raises:
        ValueError: if the formula uses an environment that the converter does not know.
    """
    mathml = str(convert(text, display="block" if is_block else "inline"))
    if ">&<" in mathml:  # a separator of columns became a symbol
        raise ValueError(f"the site cannot show this formula; write it with `array`: {text}")
    return mathml


def _math(text: str, options: dict[str, Any]) -> str:
    """Return the HTML of a formula, for the parser."""
    return formula(text, bool(options["display_mode"]))


def _fence(tokens: Sequence[Token], i: int, *_: object) -> str:
    """Return a block of code in colours."""
    return coloured(tokens[i].content, tokens[i].info.strip())


def _table(opens: bool) -> Any:
    """Return a rule that puts a table into an element that scrolls."""
    text = '<div class="scroll"><table>\n' if opens else "</table></div>\n"
    return lambda *_: text


def _parser() -> MarkdownIt:
    """Return a parser of CommonMark with tables and formulas."""
    made = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    made.use(dollarmath_plugin, renderer=_math, double_inline=True)
    rules: Any = made.renderer
    rules.rules["fence"] = rules.rules["code_block"] = _fence
    rules.rules["table_open"], rules.rules["table_close"] = _table(True), _table(False)
    return made


_PARSER = _parser()


def plain(text: str) -> str:
    """Return text as HTML that shows its characters as they are."""
    return html.escape(text, quote=False)
