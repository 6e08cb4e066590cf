"""A picture of the graph on a page, with values and gradients, for places that cannot show pages.

It is drawn from the data of the page. A node is one layer before the nearest node that uses it. An
edge that passes layers in between has a waypoint in each of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from minigrad.viz.figure import INK, SIGNED, VERMILLION, Picture, without_middle
from minigrad.viz.previews import LETTERS, NOT_FINITE, Json

MOST = 40  # the most cards; more would be too small to read
_ACROSS = 5  # the most layers from left to right; more layers go from top to bottom
_SIDE = 6  # the most cards beside each other
_WIDE, _TALL = 1.3, 0.8  # the size of a card in inches
_BETWEEN, _BELOW = 0.8, 0.5  # inches between layers, from left to right and from top to bottom
_BESIDE = 0.2  # inches between cards of a layer
_MARGIN = 0.15  # inches
_HEAD, _FOOT = 0.45, 0.6  # inches, for the title and for the legend
_SWEEPS = 6  # sweeps over the layers; each sorts a layer's cards by the mean place of neighbours
_LEGEND = 5.4  # the width of the legend in inches
_GREY = "#5B6470"
_ORANGE: Json = {"color": VERMILLION}


def picture_of(data: Json) -> Picture | None:
    """Draw the graph of a page; return None if its cards would be too small to read."""
    nodes = len(data["nodes"])
    cards = nodes + len(data["frozen"])
    if cards > MOST:
        return None
    edges = [(link["source"], link["target"]) for link in data["links"]]
    for i, node in enumerate(data["nodes"]):
        edges += [(nodes + frozen, i) for _, frozen in node.get("frozen", ())]
    layers, routes = _layers(data["root"], cards, edges)
    is_across = len(layers) <= _ACROSS
    if not is_across and max(map(len, layers)) > _SIDE:
        return None
    step, side = (_WIDE + _BETWEEN, _TALL) if is_across else (_TALL + _BELOW, _WIDE)
    at = {}
    for depth, layer in enumerate(layers):
        for place, item in enumerate(layer):
            along = -depth * step
            beside = (place - (len(layer) - 1) / 2) * (side + _BESIDE)
            at[item] = (along, -beside) if is_across else (beside, -along)
    drawn = _Drawing(data, at, is_across)
    shared, so_far = Counter(edges), Counter[tuple[int, int]]()
    for link, (edge, route) in enumerate(zip(edges, routes, strict=True)):
        many = shared[edge]  # h + h uses h twice, so two gradients go to h
        apart = min(0.3, 0.6 / many) if is_across else min(0.75, 1.2 / many)
        shift = (so_far[edge] - (many - 1) / 2) * apart
        so_far[edge] += 1
        drawn.edge(route, shift, link)
    for item in range(cards):
        drawn.card(item)
    return drawn.picture


def _layers(
    root: int, cards: int, edges: Sequence[tuple[int, int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the layers, beginning with that of the loss, and the route of each edge.

    A layer lists its items in order. Cards have the numbers from 0 on, and waypoints those after.
    """
    depth = {root: 0}
    for source, target in sorted(edges, key=itemgetter(1), reverse=True):  # the newest first
        depth[source] = max(depth.get(source, 0), depth[target] + 1)
    layers: list[list[int]] = [[] for _ in range(max(depth.values()) + 1)]
    for card in range(cards):
        layers[depth[card]].append(card)
    waypoints, touching = count(cards), defaultdict(list)
    routes = []
    for source, target in edges:
        route = [source]
        for level in range(depth[source] - 1, depth[target], -1):
            route.append(next(waypoints))
            layers[level].append(route[-1])
        routes.append([*route, target])
        for one, other in pairwise(routes[-1]):
            touching[one].append(other)
            touching[other].append(one)
    for _ in range(_SWEEPS):
        for layer in layers:
            place = {x: i - len(each) / 2 for each in layers for i, x in enumerate(each)}
            means = {x: float(np.mean([place[y] for y in touching[x]] or [0])) for x in layer}
            layer.sort(key=means.__getitem__)
    return layers, routes


class _Drawing:
    """The picture, with one inch as its unit, and the centre of each item."""

    def __init__(self, data: Json, at: dict[int, tuple[float, float]], is_across: bool) -> None:
        self.data, self.at, self.is_across = data, at, is_across
        steps = [data["steps"][i] for i in data["passes"][0]["steps"]]
        # The pictures of gradients: by node, what arrives there; by link, what goes along it.
        self.gradients = {step["node"]: step["g"] for step in steps}
        self.sent = {link: g for step in steps for link, g, *_ in step.get("sent", ())}
        xs, ys = zip(*at.values(), strict=True)
        wide = max(max(xs) - min(xs) + _WIDE + 2 * _MARGIN, _LEGEND)
        left = (max(xs) + min(xs) - wide) / 2
        low, top = min(ys) - _TALL / 2 - _FOOT, max(ys) + _TALL / 2 + _HEAD
        self.picture = Picture(wide, top - low)
        self.picture.set_layout_engine("none")
        self._axes = self.picture.add_axes((0, 0, 1, 1), frame_on=False)
        self._axes.set(xlim=(left, left + wide), ylim=(low, top), xticks=[], yticks=[])
        self._axes.set_autoscale_on(False)
        self._forth, self._back = ("→", "←") if is_across else ("↓", "↑")
        title = without_middle(data["title"], int(wide * 11))
        keys = ["- - no gradient"] if data["frozen"] else []
        if any(len(picture) > 2 for picture in data["pictures"]):
            keys.append("of arrays: blue below 0, grey 0, yellow above 0, pink not finite")
        for x, y, text, look in (
            (0, top - 0.33, title, {"size": 11, "weight": "bold"}),
            (0, low + 0.35, f"{self._forth} value", {}),
            (0.8, low + 0.35, f"{self._back} gradient, which goes back along the arrows", _ORANGE),
            (0, low + _MARGIN, "      ".join(keys), {"color": _GREY}),
        ):
            self._write(left + _MARGIN + x, y, text, ha="left", va="bottom", **look)

    def _write(self, x: float, y: float, text: str, **look: Any) -> None:
        look = {"ha": "center", "va": "center", "size": 8.5, "color": INK, **look}
        self._axes.text(x, y, text, **look)

    def card(self, item: int) -> None:
        """Draw a node with its value and the gradient that arrives there, or a frozen input."""
        (x, y), is_frozen = self.at[item], item >= len(self.data["nodes"])
        thing = [*self.data["nodes"], *self.data["frozen"]][item]
        value, is_leaf = thing.get("value"), not is_frozen and "op" not in thing
        look: Json = {"facecolor": "#E6EEF7" if is_leaf else "white", "edgecolor": INK}
        look |= {"edgecolor": _GREY, "linestyle": "--"} if is_frozen else {}
        box = f"round,pad=0,rounding_size={0.05 if 'op' in thing else 0.2}"
        corner = x - _WIDE / 2, y - _TALL / 2
        self._axes.add_patch(FancyBboxPatch(corner, _WIDE, _TALL, boxstyle=box, **look))
        name = without_middle(thing["name"], 15)
        words = ["no gradient" if is_frozen else "leaf" if is_leaf else ""]
        if "op" in thing and thing["named"]:
            words.append(self.data["ops"][thing["op"]]["name"])
        known = None if value is None else self.data["kinds"][self.data["pictures"][value][0]][0]
        words.append(" x ".join(map(str, thing.get("shape", known or ()))))
        self._write(x, y + 0.26, name, weight="bold", color=_GREY if is_frozen else INK)
        self._write(x, y + 0.06, " ".join(filter(None, words)), size=7.5, color=_GREY)
        aside = 0 if is_frozen else _WIDE / 4
        self._value(value, x - aside, y - 0.21, self._forth, INK)
        if not is_frozen:
            self._value(self.gradients[item], x + aside, y - 0.21, self._back, VERMILLION)

    def _value(self, index: int | None, x: float, y: float, arrow: str, color: str) -> None:
        """Draw a number, or an array as a heat map with the cells that the page has."""
        entry: list[Any] = [0, []] if index is None else self.data["pictures"][index]
        kind, *content = entry
        if not content[0]:
            text = "not saved" if index is None else "empty"
            self._write(x, y, text, size=7, style="italic", color=_GREY)
        elif len(content) == 1:
            self._write(x, y, f"{arrow} {_short(content[0][0])}", color=color, size=7.5)
        else:
            letters = content[0] if isinstance(content[0], str) else content[1]
            shades = [np.nan if x == NOT_FINITE else LETTERS.index(x) for x in letters]
            self._axes.imshow(
                np.reshape(shades, self.data["kinds"][kind][2:]),
                cmap=SIGNED.with_extremes(bad="#C8006E"),
                vmin=0,
                vmax=len(LETTERS) - 1,
                extent=(x - 0.27, x + 0.27, y - 0.13, y + 0.13),
                aspect="auto",
                interpolation="nearest",
                zorder=3,
            )

    def edge(self, route: Sequence[int], shift: float, link: int) -> None:
        """Draw an edge, and the gradient that goes back along it if this is a single number.

        Edges between the same two cards are shifted apart. Edges with numbers after those of the
        links belong to frozen inputs.
        """
        moved = np.array([0, shift] if self.is_across else [shift, 0])
        forth = np.array([_WIDE / 2, 0] if self.is_across else [0, -_TALL / 2])
        # A waypoint is as long as a card, so that the edge passes beside the cards of its layer.
        ends = [(self.at[x] + moved - forth, self.at[x] + moved + forth) for x in route]
        points, codes = [ends[0][1]], [Path.MOVETO]
        for (_, start), (end, after) in pairwise(ends):
            bend = (end - start) * (forth != 0) / 2  # the curve has one direction at both ends
            points += [start + bend, end - bend, end, after]
            codes += [Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
        look: Json = {"arrowstyle": "-", "linestyle": "--", "color": _GREY}
        if link in self.sent:
            look = {"arrowstyle": "-|>", "mutation_scale": 9, "color": INK}
        path = Path(points[:-1], codes[:-1])
        self._axes.add_patch(FancyArrowPatch(path=path, shrinkA=0, shrinkB=0, **look))
        sent = self.data["pictures"][self.sent[link]] if link in self.sent else []
        if len(sent) == 2 and sent[1]:
            x, y = (points[0] + points[3]) / 2
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
            text = f"{self._back} {_short(sent[1][0])}"
            self._write(x, y, text, weight="bold", size=8, bbox=box, **_ORANGE)


def _short(x: Any) -> str:
    """Write a number with four digits, or fewer if it would be longer than seven letters."""
    texts = [x] if isinstance(x, str) else [f"{x:.{digits}g}" for digits in (4, 3, 2, 1)]
    text = next((text for text in texts if len(text) <= 7), texts[-1])
    return text.replace("-", "\N{MINUS SIGN}")
