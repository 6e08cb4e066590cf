"""Gradient descent with momentum in a valley, for many values of two hyperparameters.

`computed` runs `mg.optim.SGD` for each learning rate and momentum of a grid. `explorer` makes a
page with a slider for each hyperparameter. The page shows a map of the heights that the runs reach,
and the path of the chosen run.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import minigrad as mg
from examples.walkthroughs.sliders import Page, page

CONDITION = 25  # the condition number: the ratio of the curvatures across and along the valley
START = (10.0, 1.0)
STEPS = 60  # the length of a run
SHOWN = 40  # the number of steps of a path that the page shows
X, Y = (-12.0, 12.0), (-1.8, 1.8)  # the part of the plane of x and y on the page

Array = NDArray[np.floating]


def height(x: Array, y: Array) -> Array:
    """Return the height of the valley."""
    return (x * x + CONDITION * y * y) / 2


def descent(lr: float, momentum: float, steps: int = STEPS) -> Array:
    """Return the points that SGD visits, as an array (steps + 1, 2)."""
    point = mg.tensor(START, dtype="float64", requires_grad=True)
    curvatures = mg.tensor([1.0, CONDITION], dtype="float64")
    optimizer = mg.optim.SGD([point], lr=lr, momentum=momentum)
    path = [point.data.copy()]
    for _ in range(steps):
        optimizer.zero_grad()
        ((point * point * curvatures).sum() / 2).backward()
        optimizer.step()
        path.append(point.data.copy())
    return np.array(path)


def limit(momentum: Array) -> Array:
    """Return the learning rate above which the steepest direction diverges."""
    return 2 * (1 + momentum) / CONDITION


def optimum() -> tuple[float, float]:
    """Return the learning rate and momentum with which the slowest direction is fastest."""
    root = CONDITION**0.5
    return (2 / (1 + root)) ** 2, ((root - 1) / (root + 1)) ** 2


@dataclass(frozen=True)
class Plane:
    """The runs of a grid.

    Attributes:
        rates: the learning rates.
        momenta: the values of the momentum.
        paths: the points of each run, (momenta, rates, STEPS + 1, 2).
    """

    rates: Array
    momenta: Array
    paths: Array

    @property
    def exponents(self) -> Array:
        """The decimal logarithm of the height at the end of each run, (momenta, rates)."""
        logarithms: Array = np.log10(height(*np.moveaxis(self.paths[:, :, -1], -1, 0)))
        return logarithms


def computed() -> Plane:
    """Run SGD for 32 learning rates and 20 values of the momentum."""
    rates, momenta = np.arange(1, 33) * 0.005, np.arange(20) * 0.05
    paths = np.array([[descent(lr, momentum) for lr in rates] for momentum in momenta])
    return Plane(rates, momenta, paths)


def packed(paths: Array) -> str:
    """Return paths as 16-bit numbers in base64: x, y, x, y, ... from 0 to 65535 across X and Y.

    Points outside are moved to the border.
    """
    low, high = np.transpose([X, Y])
    scaled = (np.clip(paths, low, high) - low) / (high - low) * 65535
    return base64.b64encode(np.round(scaled).astype("<u2").tobytes()).decode()


def explorer(plane: Plane) -> Page:
    """Return a page on which two sliders choose a run of the plane."""
    best_rate, best_momentum = optimum()
    data = {
        "rates": plane.rates.round(3).tolist(),
        "momenta": plane.momenta.round(2).tolist(),
        "exponents": plane.exponents.round(1).tolist(),
        "paths": packed(plane.paths[:, :, : SHOWN + 1]),
        "points": SHOWN + 1,
        "steps": STEPS,
        "condition": CONDITION,
        "start": height(*np.array(START)),
        "x": X,
        "y": Y,
        "best": [best_rate, best_momentum],
    }
    return page("The plane of learning rate and momentum", data, STYLE, BODY, SCRIPT, height=590)


STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr));
  gap: 4px 12px; }
figure { margin: 0; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; touch-action: manipulation; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.axis { stroke: var(--ink); fill: none; }
.hill { stroke: var(--line); fill: none; }
.path { stroke: var(--blue); fill: none; stroke-width: 2; }
.dot { fill: var(--blue); }
.path.up { stroke: var(--orange); stroke-dasharray: 5 3; }
.dot.up { fill: var(--orange); }
.theory { stroke: #000; stroke-width: 2; stroke-dasharray: 6 4; fill: none; }
.halo { stroke: #fff; stroke-width: 5; fill: none; stroke-opacity: 0.75; }
.chosen { fill: none; stroke: #000; stroke-width: 2.5; }
.chosen.halo { stroke: #fff; stroke-width: 6; }
#map { cursor: pointer; }
#said { margin: 2px 0 6px; min-height: 2.8em; }
.rate { min-width: 3em; }
.legend { margin: 0 0 6px; color: var(--soft); font-size: 13px; }
label > span { min-width: 6.5em; }
"""

BODY = """
<label><span>learning rate</span> <input type="range" id="rate" min="0" step="1">
<output id="rate-said" class="rate"></output></label>
<label><span>momentum</span> <input type="range" id="momentum" min="0" step="1">
<output id="momentum-said" class="rate"></output></label>
<p id="said" role="status"></p>
<div class="panels">
<figure><figcaption>How low does it get? Dark is good</figcaption>
<svg id="map" viewBox="0 0 400 330" role="img"></svg>
<p class="legend" id="legend"></p></figure>
<figure><figcaption id="path-title"></figcaption>
<svg id="walk" viewBox="0 0 400 330" role="img"></svg></figure>
</div>
"""

SCRIPT = """
const byId = (id) => document.getElementById(id);
const element = (parent, name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
};
const bytes = Uint8Array.from(atob(DATA.paths), (letter) => letter.charCodeAt(0));
const numbers = new Uint16Array(bytes.buffer);
const rates = DATA.rates, momenta = DATA.momenta;

// Both panels: the inner part is 340 wide and 270 high, and its left upper corner is at (50, 10).
const LEFT = 50, TOP = 10, WIDTH = 340, HEIGHT = 270;
const frame = (svg, across, up, ticksAcross, ticksUp, nameAcross, nameUp) => {
  for (const [place, text] of ticksAcross) {
    element(svg, "text", {x: across(place), y: TOP + HEIGHT + 17, "text-anchor": "middle"}, text);
    element(svg, "path", {class: "axis", d: `M${across(place)} ${TOP + HEIGHT}v4`});
  }
  for (const [place, text] of ticksUp) {
    element(svg, "text", {x: LEFT - 7, y: up(place) + 4, "text-anchor": "end"}, text);
    element(svg, "path", {class: "axis", d: `M${LEFT} ${up(place)}h-4`});
  }
  element(svg, "rect", {class: "axis", x: LEFT, y: TOP, width: WIDTH, height: HEIGHT});
  const middle = TOP + HEIGHT / 2;
  element(svg, "text", {x: LEFT + WIDTH / 2, y: 324, "text-anchor": "middle"}, nameAcross);
  element(svg, "text", {x: 13, y: middle, "text-anchor": "middle",
    transform: `rotate(-90 13 ${middle})`}, nameUp);
};

// The map: a cell for each run.
const map = byId("map");
const cellWidth = WIDTH / rates.length, cellHeight = HEIGHT / momenta.length;
const stepOf = (list) => list[1] - list[0];
const across = (rate) => LEFT + ((rate - rates[0]) / stepOf(rates) + 0.5) * cellWidth;
const up = (m) => TOP + HEIGHT - ((m - momenta[0]) / stepOf(momenta) + 0.5) * cellHeight;
const startExponent = Math.log10(DATA.start);
const diverges = (row, column) => DATA.exponents[row][column] > startExponent;
const mix = (a, b, t) => Math.round(a + (b - a) * t);
const colour = (exponent) => {
  const t = Math.min(1, Math.max(0, (2 - exponent) / 22));
  return `rgb(${mix(222, 8, t)},${mix(235, 48, t)},${mix(247, 107, t)})`;
};
const hatch = element(element(map, "defs", {}), "pattern",
  {id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse",
    patternTransform: "rotate(45)"});
element(hatch, "rect", {width: 6, height: 6, fill: "#f3b48b"});
element(hatch, "rect", {width: 2, height: 6, fill: "#d55e00"});
momenta.forEach((momentum, row) => rates.forEach((rate, column) => {
  element(map, "rect", {x: across(rate) - cellWidth / 2, y: up(momentum) - cellHeight / 2,
    width: cellWidth, height: cellHeight, "shape-rendering": "crispEdges",
    fill: diverges(row, column) ? "url(#hatch)" : colour(DATA.exponents[row][column])});
}));
frame(map, across, up, [0.04, 0.08, 0.12, 0.16].map((v) => [v, v]),
  [0, 0.25, 0.5, 0.75, 0.95].map((v) => [v, v]), "learning rate", "momentum");
const border = momenta.map((m) => [2 * (1 + m) / DATA.condition, m])
  .filter(([rate]) => rate <= rates[rates.length - 1]);
const line = "M" + border.map(([rate, m]) => `${across(rate)} ${up(m)}`).join("L");
element(map, "path", {class: "halo", d: line});
element(map, "path", {class: "theory", d: line});
const [bestX, bestY] = [across(DATA.best[0]), up(DATA.best[1])];
const cross = `M${bestX - 6} ${bestY - 6}l12 12m0 -12l-12 12`;
element(map, "path", {class: "halo", d: cross});
element(map, "path", {d: cross, stroke: "#000", "stroke-width": 2.5});
const rings = ["chosen halo", "chosen"].map((kind) => element(map, "circle", {class: kind, r: 7}));

// The valley, with lines of equal height.
const walk = byId("walk");
const wide = (x) => LEFT + (x - DATA.x[0]) / (DATA.x[1] - DATA.x[0]) * WIDTH;
const high = (y) => TOP + HEIGHT - (y - DATA.y[0]) / (DATA.y[1] - DATA.y[0]) * HEIGHT;
const clip = element(element(walk, "defs", {}), "clipPath", {id: "inside"});
element(clip, "rect", {x: LEFT, y: TOP, width: WIDTH, height: HEIGHT});
const inside = element(walk, "g", {"clip-path": "url(#inside)"});
for (let radius = 1; radius < 16; radius += 1.5) {
  element(inside, "ellipse", {class: "hill", cx: wide(0), cy: high(0), rx: wide(radius) - wide(0),
    ry: high(0) - high(radius / Math.sqrt(DATA.condition))});
}
const trace = element(inside, "polyline", {});
const dots = Array.from({length: DATA.points}, () => element(inside, "circle", {r: 2.6}));
element(walk, "path", {stroke: "var(--ink)", "stroke-width": 2,
  d: `M${wide(0) - 5} ${high(0)}h10m-5 -5v10`});
frame(walk, wide, high, [-10, 0, 10].map((v) => [v, v]), [-1, 0, 1].map((v) => [v, v]), "x", "y");

const power = (n) => "10" + [...String(n)].map((c) => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("");
byId("legend").textContent = `Light: ${power(2)} after ${DATA.steps} steps, dark: ${power(-20)}. `
  + "Striped: it grows. Dashed: the limit of theory, 2 (1 + momentum) / "
  + `${DATA.condition}. Cross: the optimum of theory. Ring: the chosen run.`;
const sliders = {rate: byId("rate"), momentum: byId("momentum")};
sliders.rate.max = rates.length - 1;
sliders.momentum.max = momenta.length - 1;
const show = () => {
  const column = Number(sliders.rate.value), row = Number(sliders.momentum.value);
  const rate = rates[column], momentum = momenta[row];
  byId("rate-said").textContent = rate.toFixed(3);
  byId("momentum-said").textContent = momentum.toFixed(2);
  sliders.rate.setAttribute("aria-valuetext", rate.toFixed(3));
  sliders.momentum.setAttribute("aria-valuetext", momentum.toFixed(2));
  for (const ring of rings) {
    ring.setAttribute("cx", across(rate));
    ring.setAttribute("cy", up(momentum));
  }
  const first = (row * rates.length + column) * DATA.points;
  const points = dots.map((dot, i) => {
    const share = [0, 1].map((k) => numbers[2 * (first + i) + k] / 65535);
    return [LEFT + share[0] * WIDTH, TOP + HEIGHT - share[1] * HEIGHT];
  });
  const grows = diverges(row, column) ? " up" : "";
  trace.setAttribute("points", points.map((point) => point.join()).join(" "));
  trace.setAttribute("class", `path${grows}`);
  dots.forEach((dot, i) => {
    dot.setAttribute("cx", points[i][0]);
    dot.setAttribute("cy", points[i][1]);
    dot.setAttribute("class", `dot${grows}`);
  });
  const exponent = DATA.exponents[row][column];
  const end = exponent > -2 && exponent < 4 ? Number((10 ** exponent).toPrecision(2)).toString()
    : `about ${power(Math.round(exponent))}`;
  const edge = 2 * (1 + momentum) / DATA.condition;
  byId("said").textContent = `The height goes from ${DATA.start} to ${end} in ${DATA.steps} steps. `
    + (grows ? "It does not converge. " : "")
    + `With this momentum, the limit of the learning rate is ${edge.toFixed(3)}.`;
  byId("path-title").textContent = `The path, its first ${DATA.points - 1} steps`;
  walk.setAttribute("aria-label", `The path in the valley with learning rate ${rate} and momentum `
    + `${momentum}: ${grows ? "it does not converge" : "it comes nearer to the lowest point"}.`);
};
map.setAttribute("aria-label", `A map of the height after ${DATA.steps} steps by learning rate `
  + "and momentum: the dashed line is the limit of theory, to the right of which the runs do not "
  + "converge, and the cross is the optimum of theory.");
map.addEventListener("click", (event) => {
  const box = map.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * 400 - LEFT;
  const y = TOP + HEIGHT - (event.clientY - box.top) / box.height * 330;
  const near = (value, size, count) => Math.min(count - 1, Math.max(0, Math.floor(value / size)));
  sliders.rate.value = near(x, cellWidth, rates.length);
  sliders.momentum.value = near(y, cellHeight, momenta.length);
  show();
});
for (const name in sliders) sliders[name].addEventListener("input", show);
sliders.rate.value = 5;
sliders.momentum.value = 14;
show();
"""
