// The slider that nudges a leaf: what its gradient predicts, and what the nudge does to the result.

const PLOT = { left: 58, right: 352, top: 16, low: 146 };
const START = 0.5;  // of the slider's way from the middle to its end

// An element of an array, as it is written in Python.
function elementOf(name, at) {
  return at.length ? `${name}[${at.join(", ")}]` : name;
}

class Nudge {
  constructor(data, element) {
    this.data = data;
    this.root = data.nodes[data.root].name;
    const { elements, steps, why } = data.nudges;
    const [note, box] = [element.querySelector(".note"), element.querySelector(".try")];
    note.textContent = why ? `Not for this graph. ${why}` : this.about(elements);
    box.hidden = Boolean(why);
    if (why) return;
    this.steps = steps;
    this.elements = new Map(elements.map(({ node }) => [node, elements.filter((each) => each.node === node)]));
    [this.leaf, this.element, this.slider] = ["leaf", "element", "by"].map((name) => document.getElementById(`nudge-${name}`));
    [this.words, this.plot] = [box.querySelector("dl"), box.querySelector("svg")];
    this.leaf.append(...[...this.elements.keys()].map((i) => html("option", { value: i }, data.nodes[i].name)));
    [this.slider.min, this.slider.max, this.slider.value] = [-steps, steps, START * steps];
    this.leaf.addEventListener("change", () => this.take(Number(this.leaf.value)));
    this.element.addEventListener("change", () => this.draw());
    this.slider.addEventListener("input", () => this.draw());
    this.take(elements[0].node);
  }

  about(elements) {
    const leaves = this.data.nodes.filter((node) => node.op === undefined);
    const total = leaves.reduce((sum, node) => sum + node.shape.reduce((a, b) => a * b, 1), 0);
    const some = elements.length < total ? ` Of the ${total} numbers in leaves, ${elements.length} with large gradients can be nudged.` : "";
    return `Predicted: gradient × nudge. True: f(x + nudge) − f(x), from the graph run again. Indices, conditions and detached values stay as they are.${some}`;
  }

  // Show a leaf, if it can be nudged.
  take(node) {
    const elements = this.elements?.get(node);
    if (!elements) return;
    this.leaf.value = node;
    this.element.replaceChildren(...elements.map(({ at }, i) => html("option", { value: i }, elementOf("", at))));
    this.element.parentElement.hidden = !elements[0].at.length;
    this.draw();
  }

  draw() {
    const shown = this.elements.get(Number(this.leaf.value))[Number(this.element.value)];
    const k = Number(this.slider.value);
    const name = elementOf(this.data.nodes[shown.node].name, shown.at);
    const nudges = shown.changes.map((_, i) => (shown.reach * (i - this.steps) * Math.abs(i - this.steps)) / this.steps ** 2);
    const nudge = nudges[k + this.steps];
    const predicted = shown.gradient * nudge;  // NaN if the gradient is not finite, and so a text
    const change = shown.changes[k + this.steps];
    const off = Math.abs(predicted - change);
    const share = off && change ? `, ${short((100 * off) / Math.abs(change), 2)} % of the true change` : "";
    this.words.replaceChildren(...[
      ["", "x + nudge", `${short(shown.value)} ${nudge < 0 ? "−" : "+"} ${short(Math.abs(nudge))} = ${short(Number(shown.value) + nudge)}`],
      ["predicted", "predicted", `${short(shown.gradient)} × ${short(nudge)} = ${short(predicted)}`],
      ["true", "true", short(change)],
      ["", "off by", Number.isFinite(off) ? `${short(off)}${share}` : "unknown: a number is not finite"],
    ].flatMap(([kind, word, text]) => [html("dt", { class: kind }, word), html("dd", {}, text)]));
    const said = `nudge ${short(nudge)}, predicted ${short(predicted)}, true ${short(change)}`;
    this.slider.setAttribute("aria-valuetext", said);
    this.plot.setAttribute("aria-label", `The change of ${this.root} over the nudge of ${name}: a curve, and a straight line that the gradient predicts. At ${said}.`);
    this.drawPlot(shown, nudges, name, k + this.steps);
  }

  drawPlot({ gradient, reach, changes }, nudges, name, now) {
    const { left, right, top, low } = PLOT;
    const largest = Math.max(0, ...changes.filter(Number.isFinite).map(Math.abs));
    const straight = Math.abs(gradient * reach) || 0;
    const high = Math.max(largest, Math.min(straight, 2 * largest)) || straight || 1;
    const x = (nudge) => round(left + ((nudge / reach + 1) / 2) * (right - left));
    const y = (change) => round(top + ((1 - change / high / 1.06) / 2) * (low - top));
    const text = (kind, at, anchor, words) => svg("text", { class: kind, x: at[0], y: at[1], "text-anchor": anchor }, this.plot, words);
    this.plot.replaceChildren();
    svg("path", { class: "axes", d: `M${left},${y(0)} H${right} M${x(0)},${top} V${low}` }, this.plot);
    for (const [i, anchor] of ["start", "middle", "end"].entries()) {
      const sign = i - 1;
      text("tick", [x(sign * reach), low + 14], anchor, short(sign * reach));
      text("tick", [left - 6, y(sign * high) + 4], "end", fitting(sign * high, 7));
    }
    text("axis", [left, 10], "start", `change of ${cut(this.root, 24)}`);
    text("axis", [(left + right) / 2, low + 27], "middle", `nudge of ${cut(name, 30)}`);
    const [wide, tall] = [right - left, low - top];
    const inside = svg("svg", { x: left, y: top, width: wide, height: tall, viewBox: `${left} ${top} ${wide} ${tall}` }, this.plot);
    const line = (kind, points) => svg("path", { class: kind, d: points.map((point, i) => `${i ? "L" : "M"}${point}`).join(" ") }, inside);
    const at = (nudge, change) => [x(nudge), y(change)];
    const dot = (kind, change, r) => {
      if (Math.abs(change) <= high) svg("circle", { class: kind, cx: x(nudges[now]), cy: y(change), r }, this.plot);
    };
    const ends = [-reach, reach];
    const predicted = gradient * nudges[now];
    if (Number.isFinite(predicted)) line("predicted", ends.map((nudge) => at(nudge, gradient * nudge)));
    let points = [];  // of a part of the curve in which all numbers are finite
    for (const [i, change] of [...changes, "end"].entries()) {
      if (Number.isFinite(change)) points.push(at(nudges[i], change));
      else if (points.length) {
        line("true", points);
        points = [];
      }
    }
    dot("true", changes[now], 4);  // none where the number is not finite
    dot("predicted", predicted, 6.5);
  }
}
