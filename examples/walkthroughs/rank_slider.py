"""A page with a slider for the rank of LoRA: the update of each rank, and what it misses.

We compute all values here; the page only looks up the values of the rank that the reader chooses.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.sliders import Page, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Matrix = NDArray[np.float64]

LEVELS = 127  # steps of colour on each side of zero


def values(delta: Matrix, updates: Sequence[Matrix], losses: Sequence[float]) -> dict[str, Any]:
    """Return the values that the page shows, in a form for JSON.

    Args:
        delta: the update that the task needs.
        updates: the trained update of each rank, from 0 to full.
        losses: the loss of each update: its squared distance from `delta`, divided by the rows.

    Raises:
        ValueError: if there are not as many updates and losses as ranks.
    """
    d_out, d_in = delta.shape
    count = min(d_out, d_in) + 1
    if not len(updates) == len(losses) == count:
        raise ValueError(
            f"a {d_out} x {d_in} matrix has {count} ranks, from 0 to {count - 1}, and there are "
            f"{len(updates)} updates and {len(losses)} losses; pass one of each for every rank"
        )
    largest = float(np.abs(delta).max())
    rows = []
    singular = np.linalg.svd(delta, compute_uv=False)
    # The distance of `delta` from the best matrix of each rank (Eckart and Young).
    least = [float(np.linalg.norm(singular[rank:])) for rank in range(count)]
    for rank, (update, loss) in enumerate(zip(updates, losses, strict=True)):
        trained = rank * (d_out + d_in)
        rows.append(
            {
                "update": _levels(update, largest),
                "difference": _levels(delta - update, largest),
                "parameters": f"{trained} of {delta.size} ({trained / delta.size:.0%})",
                "error": f"{np.linalg.norm(delta - update):.4f}",
                "least error": f"{least[rank]:.4f}",
                "loss": f"{loss:.6f}",
                "least loss": f"{least[rank] ** 2 / d_out:.6f}",
            }
        )
    return {
        "shape": [d_out, d_in],
        "delta": _levels(delta, largest),
        "largest": f"{largest:.2f}",
        "singular": [round(float(s), 4) for s in singular],
        "ranks": rows,
    }


def _levels(matrix: Matrix, largest: float) -> str:
    """Return a matrix as bytes in base64: 0 means -largest, and 2 LEVELS means largest."""
    levels = np.clip(np.rint(matrix / largest * LEVELS), -LEVELS, LEVELS) + LEVELS
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def slider(delta: Matrix, updates: Sequence[Matrix], losses: Sequence[float]) -> Page:
    """Return the page; the arguments are those of `values`."""
    title = "An update of the rank that you choose, and what is missing from it"
    return page(title, values(delta, updates, losses), STYLE, BODY, SCRIPT, height=500)


def picture(delta: Matrix, updates: Sequence[Matrix], ranks: Sequence[int] = (1, 4, 12)) -> Figure:
    """Draw the target, and for some ranks the update and the difference from the target."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list(
        "blue to orange", ["#0072B2", "white", "#D55E00"], N=31
    )
    largest = float(np.abs(delta).max())
    style: dict[str, Any] = {"cmap": colours, "vmin": -largest, "vmax": largest}
    figure, axes = plt.subplots(
        2, 1 + len(ranks), figsize=(2.3 * (1 + len(ranks)), 4.2), layout="constrained"
    )
    image = axes[0, 0].imshow(delta, **style)
    axes[0, 0].set_title("target Δ", fontsize="medium")
    axes[1, 0].set_visible(False)
    for column, rank in zip(axes.T[1:], ranks, strict=True):
        missing = delta - updates[rank]
        column[0].imshow(updates[rank], **style)
        column[0].set_title(f"update of rank {rank}", fontsize="medium")
        column[1].imshow(missing, **style)
        share = np.linalg.norm(missing) / np.linalg.norm(delta)
        column[1].set_title(f"missing: {share:.0%} of |Δ|", fontsize="medium")
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="value of an entry", shrink=0.8)
    figure.suptitle("Trained updates of three ranks, and what is missing from Δ")
    return figure


STYLE = """
.maps { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin: 6px 0; }
figure { margin: 0; }
figcaption, .key { font-size: 13px; }
canvas { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
svg { width: 100%; height: 90px; border-bottom: 1px solid var(--line); }
.kept { fill: var(--blue); }
.dropped { fill: none; stroke: var(--orange); stroke-width: 1.5; }
.key b { display: inline-block; width: 11px; height: 11px; vertical-align: -1px; }
.key .kept { background: var(--blue); }
.key .dropped { border: 1.5px solid var(--orange); }
table { width: 100%; border-collapse: collapse; margin-top: 6px; }
th { text-align: left; font-weight: normal; }
td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 2px 4px 2px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
"""

BODY = """
<label for="rank">Rank <input type="range" id="rank" min="0" step="1">
<output for="rank" id="chosen"></output></label>
<div class="maps">
<figure><canvas id="delta" role="img"></canvas><figcaption>Δ, the target</figcaption></figure>
<figure><canvas id="update" role="img"></canvas>
<figcaption>s B A, trained at this rank</figcaption></figure>
<figure><canvas id="difference" role="img"></canvas>
<figcaption>Δ &minus; s B A, what is missing</figcaption></figure>
</div>
<div class="key">Entries from <span id="low"></span> (blue) over 0 (background) to
<span id="high"></span> (orange).</div>
<svg id="bars" role="img" preserveAspectRatio="none"></svg>
<div class="key">Singular values of Δ, from the largest to the smallest:
<b class="kept"></b> kept, <b class="dropped"></b> discarded</div>
<table>
<tr><th scope="row">Trained parameters, of those of the full matrix</th>
<td id="parameters"></td></tr>
<tr><th scope="row">Error |Δ &minus; s B A| after training</th><td id="error"></td></tr>
<tr><th scope="row">Least error of this rank: the root of the sum of the squares of the discarded
singular values</th><td id="least-error"></td></tr>
<tr><th scope="row">Loss after training</th><td id="loss"></td></tr>
<tr><th scope="row">Least loss of this rank</th><td id="least-loss"></td></tr>
</table>
"""

SCRIPT = """
const byId = (name) => document.getElementById(name);
const [high, wide] = DATA.shape;
const range = byId("rank");
const [kept, dropped] = ["kept", "dropped"].map((name) => document.querySelector(`.key .${name}`));
range.max = DATA.ranks.length - 1;
byId("low").textContent = `\\u2212${DATA.largest}`;
byId("high").textContent = DATA.largest;

// Colours that depend on whether the page is dark, as three numbers each.
const colour = (element, name) => getComputedStyle(element)[name].match(/\\d+/g).map(Number);

const paint = (name, encoded, label) => {
  const canvas = byId(name);
  [canvas.width, canvas.height] = [wide, high];
  canvas.setAttribute("aria-label", label);
  const image = new ImageData(wide, high);
  const zero = colour(document.body, "backgroundColor");
  const ends = [colour(kept, "backgroundColor"), colour(dropped, "borderTopColor")];
  [...atob(encoded)].forEach((letter, i) => {
    const share = letter.charCodeAt(0) / 127 - 1;
    const end = ends[share < 0 ? 0 : 1];
    for (let k = 0; k < 3; k += 1) {
      image.data[4 * i + k] = zero[k] + Math.abs(share) * (end[k] - zero[k]);
    }
    image.data[4 * i + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
};

const drawBars = (rank) => {
  const bars = byId("bars");
  const step = 10;
  bars.setAttribute("viewBox", `0 0 ${step * DATA.singular.length} 90`);
  bars.setAttribute("aria-label", `${rank} of ${DATA.singular.length} singular values are kept`);
  bars.replaceChildren(...DATA.singular.map((value, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = (86 * value) / DATA.singular[0];
    const place = { x: step * i + 1.5, y: 89 - height, width: step - 3, height };
    for (const [key, number] of Object.entries(place)) bar.setAttribute(key, number);
    bar.setAttribute("class", i < rank ? "kept" : "dropped");
    bar.setAttribute("vector-effect", "non-scaling-stroke");
    return bar;
  }));
};

const show = () => {
  const rank = Number(range.value);
  const row = DATA.ranks[rank];
  byId("chosen").textContent = `${rank} of ${DATA.ranks.length - 1}`;
  paint("delta", DATA.delta, "the target");
  paint("update", row.update, `the update of rank ${rank}`);
  paint("difference", row.difference, `what an update of rank ${rank} is missing`);
  drawBars(rank);
  for (const name of ["parameters", "error", "least error", "loss", "least loss"]) {
    byId(name.replace(" ", "-")).textContent = row[name];
  }
};

range.value = 4;
range.addEventListener("input", show);
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", show);
}
new MutationObserver(show).observe(document.documentElement, { attributeFilter: ["data-theme"] });
show();
"""
