// The panel beside the graph: what happens in the step, in words, formulas and numbers.

function html(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const MANY = 8;  // inputs of an op, above which the first stand for all
const FIRST = 3;  // of these

// The first of many, and how many more there are.
function theFirst(all) {
  return all.length > MANY ? [all.slice(0, FIRST), [`… ${all.length - FIRST} more`]] : [all, []];
}

const NOT_SAVED = "Not saved: no VJP that runs asks for it, so the graph has dropped it. A tape keeps it: with viz.record() as tape: …";

class Panel {
  constructor(data) {
    this.data = data;
  }

  // A picture of an array: its numbers, or a heat map and its range; without an array, words.
  picture(index, kind, missing) {
    if (index === undefined) return html("span", { class: "none" }, missing);
    const picture = this.data.pictures[index];
    if (picture.numbers?.length === 0) return html("span", { class: "none" }, "empty");
    if (picture.numbers) {
      const [last] = picture.shape.slice(-1);
      const columns = Math.max(1, picture.shape.length === 1 ? Math.min(4, last) : (last ?? 1));
      const rows = [];
      for (let i = 0; i < picture.numbers.length; i += columns) {
        rows.push(html("tr", {}, ...picture.numbers.slice(i, i + columns).map((x) =>
          html("td", { "data-value": String(x), title: String(x) }, short(x, columns > 2 ? 3 : 4)))));
      }
      const wide = columns > 4 ? { tabindex: 0 } : {};  // it may have to be scrolled
      return html("table", { class: `numbers ${columns > 2 ? "dense" : ""} ${kind}`, "aria-label": inWords(picture), ...wide }, html("tbody", {}, ...rows));
    }
    const tall = Math.max(picture.rows * 7, 14);
    const image = html("img", { src: heatMap(picture), alt: inWords(picture), width: Math.min(168, picture.columns * 7), height: Math.min(126, tall) });
    const broken = picture.broken ? `, ${picture.broken} not finite` : "";
    const range = picture.low !== "nan" ? `${short(picture.low)} … ${short(picture.high)}, rms ${short(picture.rms)}` : "no finite number";
    return html("div", { class: `heat ${kind}` }, image, html("span", {}, `${shapeOf(picture)}: ${range}${broken}`));
  }

  name(i) {
    return this.data.nodes[i].name;
  }

  button(id, text, kind) {
    return html("button", { type: "button", class: `to ${kind ?? ""}`, "data-to": id }, text);
  }

  link(i) {
    return this.button(`n${i}`, this.name(i));
  }

  // ------------------------------------------------------------------------------------------- step

  // One sentence on a step, which a screen reader says.
  sentence(step, pass) {
    const number = (index) => inWords(this.data.pictures[index]);
    const name = this.name(step.node);
    if (step.kind === "seed") return `The pass starts at ${name}. The derivative of a number with respect to itself is 1.`;
    if (step.kind === "leaf") {
      const had = step.before === undefined ? `${name} had no .grad` : `.grad of ${name} was ${number(step.before)}`;
      return `${had}; ${number(step.g)} has arrived; now it is ${number(step.after)}.`;
    }
    const parts = step.sent.map((sent) => {
      const link = this.data.links[sent.link];
      const to = this.name(link.source);
      const result = `${number(sent.gradient)} goes to ${to}`;
      return sent.before === undefined ? result : `${result}, which had ${number(sent.before)} and has ${number(sent.after)} now`;
    });
    const fault = step.fault ? ` ${pass.wrong}.` : "";
    return `At ${name}, ${number(step.g)} has arrived.${fault} ${parts.join("; ")}.`;
  }

  step(step, pass, position) {
    const parts = [];
    if (step.fault && position === pass.fault) parts.push(this.firstFault(step, pass));
    else if (step.fault) parts.push(html("p", { class: "fault" }, `✕ ${pass.wrong}.`));
    if (step.early) parts.push(html("p", { class: "note" }, "It does not wait for the gradients that are still to come. It will have to be here again."));
    if (step.kind === "vjp") parts.push(...this.vjp(step, pass));
    else if (step.kind === "leaf") parts.push(...this.leaf(step, pass));
    else parts.push(...this.seed(step));
    if (position === pass.steps.length - 1) parts.push(...this.ends(pass));
    return parts;
  }

  seed(step) {
    return [
      html("h2", { tabindex: -1 }, "Start at ", this.link(step.node)),
      html("p", {}, "The derivative of a number with respect to itself is 1."),
      this.sum([["g", this.picture(step.g, "grad")]]),
    ];
  }

  leaf(step, pass) {
    const rows = [
      [".grad before", this.picture(step.before, "grad", "None")],
      ["+ arrived", this.picture(step.g, "grad")],
      ["= .grad", this.picture(step.after, "grad result")],
    ];
    const end = pass.ends.find(([node]) => node === step.node);
    const wrong = end && end[1] !== end[2];
    if (wrong) rows.push(["✕ should be", this.picture(end[2], "grad right")]);
    return [html("h2", { tabindex: -1 }, this.link(step.node), " gets its gradient"), this.sum(rows)];
  }

  vjp(step, pass) {
    const links = step.sent.map((sent) => this.data.links[sent.link]);
    const vjp = this.data.vjps[links[0].vjp];
    const joint = step.sent.length > 1;
    const parts = [
      html("h2", { tabindex: -1 }, this.link(step.node), " → ", ...links.flatMap((link, i) => [i ? ", " : "", this.link(link.source)])),
      html("p", { class: "which" }, this.call(step.node)),
      html("p", { class: "which" }, vjp.title),
    ];
    if (vjp.formula) parts.push(html("pre", { class: vjp.formula.length > 60 ? "formula long" : "formula" }, vjp.formula));
    const filled = step.sent[0].filled;
    if (filled && !joint) parts.push(html("p", { class: "filled" }, filled.replaceAll("-", "−")));
    if (vjp.text && vjp.text !== vjp.formula) {
      const long = vjp.formula || vjp.text.split("\n").length > 14;
      const code = html("pre", { tabindex: 0 }, vjp.text);
      parts.push(long ? html("details", { "data-kind": "source" }, html("summary", {}, `its source (${vjp.parameters})`), code) : code);
    }
    if (vjp.note) parts.push(html("p", { class: "note" }, vjp.note));
    const op = this.data.ops[this.data.nodes[step.node].op];
    if (!vjp.formula) parts.push(...this.doc(op), ...this.composition(op));
    const given = [["g", html("span", {}, this.picture(step.g, "grad"), this.complete(step, pass))]];
    for (const [name, index, text] of links[0].given) {
      const what = index < 0 ? html("code", {}, text) : this.picture(index, "");
      given.push([name, html("span", {}, what, html("span", { class: "why" }, vjp.meanings?.[name] ?? ""))]);
    }
    parts.push(html("h3", {}, "What it is given"), this.sum(given));
    step.sent.forEach((sent, i) => parts.push(...this.sent(sent, links[i])));
    return parts;
  }

  doc(op) {
    return op.doc.filter(Boolean).map((text) => html("p", { class: "doc" }, text.replaceAll("`", "")));
  }

  composition(op) {
    if (!op.composition) return [];
    const code = html("pre", { tabindex: 0 }, op.composition);
    return [html("details", { "data-kind": "composition" }, html("summary", {}, "the composition that this op replaces"), code)];
  }

  // The call that made a node, with the names of what it was called with.
  call(i) {
    const node = this.data.nodes[i];
    const known = new Map(this.data.links.filter((link) => link.target === i).map((link) => [link.input, this.name(link.source)]));
    for (const [name, f] of node.frozen) known.set(name, this.data.frozen[f].name);
    const given = [...known].sort(([a], [b]) => this.rank(node, a) - this.rank(node, b));
    const [shown, more] = theFirst(given);
    const words = [...shown.map(([name, what]) => `${name} = ${what}`), ...more];
    return `${this.data.ops[node.op].name}(${words.join(", ")})`;
  }

  rank(node, input) {
    const [name, index] = input.split("[");
    const at = this.data.ops[node.op].parameters.indexOf(name);
    return (at < 0 ? Number(name) : at) + (Number.parseInt(index, 10) || 0);
  }

  // How many of the gradients that reach a node have arrived.
  complete(step, pass) {
    if (pass.initial.length) return html("span", { class: "why" }, "");
    const all = this.data.links.filter((link) => link.source === step.node).length + (step.node === this.data.root);
    const word = step.arrivals > all ? `arrival ${step.arrivals}, of ${all} that there should be` : `${step.arrivals} of ${all} ${all === 1 ? "has" : "have"} arrived`;
    return html("span", { class: "why" }, word);
  }

  sent(sent, link) {
    const rows = [];
    if (sent.result !== undefined) {
      rows.push(["the VJP gives", this.picture(sent.result, "grad")]);
      const [a, b] = [this.data.pictures[sent.result], this.data.pictures[sent.gradient]];
      const summed = a.shape.join() !== b.shape.join();
      rows.push([summed ? "summed over what was broadcast" : `as ${b.dtype}`, this.picture(sent.gradient, "grad")]);
    }
    if (sent.before !== undefined) {
      rows.push(["had arrived", this.picture(sent.before, "grad")]);
      rows.push(["+ this", this.picture(sent.gradient, "grad")]);
      rows.push(["= so far", this.picture(sent.after, "grad result")]);
    } else if (sent.result === undefined) {
      rows.push(["first to arrive", this.picture(sent.gradient, "grad result")]);
    }
    return [html("h3", {}, "What goes to ", this.link(link.source), html("span", { class: "as" }, `, its input ${link.input}`)), this.sum(rows)];
  }

  firstFault(step, pass) {
    const text = [html("strong", {}, "✕ Here the number goes wrong. "), `${pass.wrong}.`];
    for (const sent of step.sent) {
      const name = this.name(this.data.links[sent.link].source);
      const [got, due] = [this.data.pictures[sent.gradient], this.data.pictures[sent.due]];
      if (got.numbers) text.push(` ${inWords(got)} goes to ${name}, where ${inWords(due)} would be right.`);
    }
    return html("p", { class: "fault first" }, ...text);
  }

  ends(pass) {
    if (!pass.ends.length) return [];
    const line = (word, what) => html("tr", {}, html("td", {}, word), html("td", {}, what));
    const bodies = pass.ends.map(([node, got, right]) => html("tbody", { class: got === right ? "" : "wrong" },
      html("tr", {}, html("th", { scope: "rowgroup", colspan: 2 }, this.link(node))),
      line(".grad", this.picture(got, "grad")),
      got === right ? null : line("should be", this.picture(right, "grad right"))));
    return [html("h3", {}, "In the end"), html("table", { class: "ends" }, ...bodies)];
  }

  // Rows of a name and what is there.
  sum(rows) {
    return html("dl", {}, ...rows.flatMap(([name, what]) => [html("dt", {}, name), html("dd", {}, what)]));
  }

  // ------------------------------------------------------------------------------------------- node

  node(id, state) {
    return id[0] === "f" ? this.frozen(Number(id.slice(1))) : this.details(Number(id.slice(1)), state);
  }

  modulePath(g) {
    const group = this.data.groups[g];
    return `${group.parent === -1 ? "" : `${this.modulePath(group.parent)} › `}${groupTitle(group)}`;
  }

  frozen(i) {
    const frozen = this.data.frozen[i];
    const rows = [["value", this.picture(frozen.value, "", "not saved")]];
    return [html("h2", { tabindex: -1 }, html("span", { class: "stop" }, "⊣ "), frozen.name), html("p", {}, "No gradient goes here. ", frozen.why), this.sum(rows)];
  }

  details(i, state) {
    const node = this.data.nodes[i];
    const op = node.op === undefined ? null : this.data.ops[node.op];
    const rows = [["value", this.picture(node.value, "", NOT_SAVED)]];
    if (state.gradients[i] >= 0) rows.push([state.written[i] ? ".grad" : "gradient so far", this.picture(state.gradients[i], "grad")]);
    rows.push(["shape", `${node.shape.length ? node.shape.join(" × ") : "a number"}, ${node.dtype}`]);
    if (node.group !== -1) rows.push(["module", this.modulePath(node.group)]);
    if (node.line) rows.push(["line", html("code", {}, node.line)]);
    const links = this.data.links.filter((link) => link.target === i);
    const inputs = links.map((link) => [`input ${link.input}`, this.link(link.source)]);
    for (const [name, f] of node.frozen) {
      inputs.push([`input ${name}`, html("span", {}, this.button(`f${f}`, this.data.frozen[f].name, "stopped"), " ", html("span", { class: "why" }, `⊣ ${this.data.frozen[f].why}`))]);
    }
    const [shown, more] = theFirst(inputs);
    rows.push(...shown, ...more.map((words) => ["inputs", words]));
    for (const [name, text] of node.options) rows.push([name, html("code", {}, text)]);
    const parts = [html("h2", { tabindex: -1 }, node.name, html("span", { class: "as" }, !op ? " leaf" : node.named ? ` ${op.name}` : ""))];
    if (node.hooks) parts.push(html("p", { class: "note" }, "It has a hook, which backward() would call here. This page calls none, so .grad may be another."));
    parts.push(this.sum(rows));
    if (op) {
      parts.push(...this.doc(op));
      parts.push(html("details", { "data-kind": "forward" }, html("summary", {}, `forward: ${op.signature}`), html("pre", { tabindex: 0 }, op.forward)));
      parts.push(...this.composition(op));
    }
    return parts;
  }
}
