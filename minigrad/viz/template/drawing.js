// The drawing of the graph: cards for nodes, pills for frozen inputs, boxes for modules, and edges.
//
// It is built anew when a module is opened or closed. A step only changes classes, texts and images
// of what differs from the step before.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

// The text cut to a number of letters; of a dotted name, the end is what tells.
function cut(text, letters) {
  if (text.length <= letters) return text;
  return text.includes(".") ? `…${text.slice(1 - letters)}` : `${text.slice(0, letters - 1)}…`;
}

const PEN = document.createElement("canvas").getContext("2d");
const FAMILY = getComputedStyle(document.body).fontFamily;
const [NAME, SUB] = [`bold 12.5px ${FAMILY}`, `10.5px ${FAMILY}`];  // as in the style sheet

// How wide a text is in a font; nothing is laid out for it.
function widthOf(text, font) {
  PEN.font = font;
  return PEN.measureText(text).width;
}

class Drawing {
  constructor(data, chosen, toggled) {
    this.data = data;
    this.camera = new Camera(document.getElementById("canvas"), document.getElementById("graph"), document.getElementById("zoom"));
    this.view = document.getElementById("view");
    this.chosen = chosen;
    this.toggled = toggled;
    this.closed = new Set();
    this.current = "";
  }

  // ------------------------------------------------------------------------------------------ shape

  build() {
    this.layout = layOut(this.data, this.closed);
    this.view.replaceChildren();
    this.camera.resize(this.layout.w, this.layout.h);
    this.cards = new Map();
    this.state = null;
    const [boxes, edges, cards] = ["boxes", "edges", "cards"].map((c) => svg("g", { class: c }, this.view));
    this.flow = svg("g", { class: "flow", "aria-hidden": "true" }, this.view);
    this.edges = this.layout.edges.map((edge) => this.drawEdge(edge, edges));
    this.edgeOf = new Map(this.edges.flatMap((edge) => edge.links.map((link) => [link, edge])));
    const sorted = [...this.layout.items.values()].sort((a, b) => a.x - b.x || a.y - b.y);
    for (const item of sorted) {
      const i = Number(item.id.slice(1));
      if (item.id[0] === "n") this.drawNode(item, i, cards);
      else if (item.id[0] === "f") this.drawFrozen(item, i, cards);
      else this.drawGroup(item, i, this.closed.has(i) ? cards : boxes);
    }
    this.order = sorted.map((item) => item.id);
    this.setCurrent(this.cards.has(this.current) ? this.current : this.order.at(-1));
  }

  card(item, kind, parent) {
    const group = svg("g", { class: `card ${kind}`, role: "button", tabindex: -1, "data-id": item.id }, parent);
    group.setAttribute("transform", `translate(${round(item.x)} ${round(item.y)})`);
    const card = { group, item };
    this.cards.set(item.id, card);
    return card;
  }

  drawNode(item, i, parent) {
    const node = this.data.nodes[i];
    const leaf = node.op === undefined;
    const kind = `node${leaf ? " leaf" : ""}${i === this.data.root ? " root" : ""}`;
    const card = this.card(item, kind, parent);
    svg("rect", { width: item.w, height: item.h, rx: leaf ? 18 : 6 }, card.group);
    const name = this.nameInside(node);
    const shape = node.shape.length ? node.shape.join("×") : "";
    const op = node.named ? this.opName(node) : "";
    const room = item.w - 20;
    const wide = widthOf(name, NAME);
    const sub = [`${op} ${shape}`, shape, ""].map((text) => text.trim()).find((text) => wide + 6 + widthOf(text, SUB) < room || !text);
    let letters = name.length;
    while (letters > 1 && widthOf(cut(name, letters), NAME) > room) letters--;
    svg("text", { class: "name", x: 10, y: 17 }, card.group, cut(name, letters));
    svg("text", { class: "sub", x: item.w - 10, y: 17 }, card.group, sub);
    svg("title", {}, card.group, [node.name, op, shape].filter(Boolean).join(", "));
    svg("path", { class: "divider", d: `M0,25 H${item.w} M${item.w / 2},25 V${item.h}` }, card.group);
    svg("text", { class: "label", x: 10, y: 37 }, card.group, "value");
    card.gradLabel = svg("text", { class: "label grad", x: item.w / 2 + 8, y: 37 }, card.group, "gradient");
    card.value = svg("g", { class: "value" }, card.group);
    card.grad = svg("g", { class: "grad" }, card.group);
    this.drawPicture(card.value, node.value, 8, item.w / 2 - 16);
    if (node.value === undefined) svg("text", { class: "none", x: 10, y: 58 }, card.value, "not saved");
    card.shown = -1;
  }

  // The name without the path to the module that it is drawn in.
  nameInside(thing) {
    let path = "";
    for (let g = thing.group; g !== -1 && this.data.groups[g].parent !== -1; g = this.data.groups[g].parent) {
      path = `${this.data.groups[g].name}.${path}`;
    }
    return thing.name.startsWith(path) ? thing.name.slice(path.length) : thing.name;
  }

  opName(node) {
    return node.op === undefined ? "" : this.data.ops[node.op].name;
  }

  drawPicture(parent, index, x, width) {
    parent.replaceChildren();
    const picture = this.data.pictures[index];
    if (!picture) return;
    const count = picture.numbers?.length;
    if (count === 1) svg("text", { class: "number", x: x + 2, y: 60 }, parent, fitting(picture.numbers[0], 7));
    else if (count === 0) svg("text", { class: "none", x: x + 2, y: 58 }, parent, "empty");
    else svg("image", { href: heatMap(picture), x, y: 42, width, height: 26, preserveAspectRatio: "none" }, parent);
  }

  drawFrozen(item, i, parent) {
    const frozen = this.data.frozen[i];
    const card = this.card(item, "frozen", parent);
    svg("rect", { width: item.w, height: item.h, rx: 20 }, card.group);
    svg("text", { class: "name", x: item.w / 2, y: 17 }, card.group, cut(this.nameInside(frozen), 15));
    svg("title", {}, card.group, frozen.name);
    const picture = this.data.pictures[frozen.value];
    const shape = picture?.shape.length ? `${picture.shape.join("×")} · ` : "";
    svg("text", { class: "sub", x: item.w / 2, y: 31 }, card.group, cut(`${shape}no gradient`, 22));
    card.group.setAttribute("aria-label", `${frozen.name}. No gradient goes here. ${frozen.why}`);
    card.group.addEventListener("click", () => this.chosen(item.id));
  }

  drawGroup(item, g, parent) {
    const group = this.data.groups[g];
    const closed = this.closed.has(g);
    const card = this.card(item, closed ? "group closed" : "group", parent);
    const title = groupTitle(group);
    svg("rect", { class: "frame", width: item.w, height: item.h, rx: 8 }, card.group);
    const head = svg("g", { class: "head" }, card.group);
    svg("rect", { width: item.w, height: closed ? item.h : HEADER, rx: 8 }, head);
    const letters = Math.max(4, Math.floor((item.w - 34) / 7.2));
    svg("text", { class: "name", x: 10, y: 16 }, head, `${closed ? "⊞" : "⊟"} ${cut(title, letters)}`);
    if (closed) svg("text", { class: "sub", x: 10, y: 36 }, head, this.countIn(g));
    card.group.setAttribute("aria-expanded", String(!closed));
    card.group.setAttribute("aria-label", `Module ${title}, ${closed ? "closed" : "open"}`);
    head.addEventListener("click", () => this.toggle(g));
  }

  countIn(g) {
    const isIn = (i) => i === g || (i !== -1 && isIn(this.data.groups[i].parent));
    const count = this.data.nodes.filter((node) => isIn(node.group)).length;
    return `${count} node${count === 1 ? "" : "s"} inside`;
  }

  drawEdge(edge, parent) {
    const kind = edge.links.length ? "edge" : "edge frozen";
    const points = edge.points.map((point) => [...point]);
    points.at(-1)[0] -= 2;
    return { ...edge, path: svg("path", { class: kind, d: curve(points) }, parent) };
  }

  // Open or close a module, which stays where it is on the screen.
  toggle(g) {
    const before = this.layout.items.get(`g${g}`);
    if (!this.closed.delete(g)) this.closed.add(g);
    this.toggled();
    const after = this.layout.items.get(`g${g}`);
    const { x, y, scale } = this.camera.at;
    this.camera.move({ scale, x: x + (before.x - after.x) * scale, y: y + (before.y - after.y) * scale }, false);
    this.setCurrent(`g${g}`);
  }

  foldAll() {
    if (this.closed.size) this.closed.clear();
    else this.data.groups.forEach((_, g) => this.closed.add(g));
    this.toggled();
    this.start();
  }

  // The entire drawing if it can be read, and otherwise the part of the step.
  start() {
    this.camera.setMode(this.camera.entire, this.camera.entire);
    this.camera.fit();
    this.follow();
  }

  // Have in sight what takes part in the step.
  follow() {
    this.reveal([...this.state.active]);
  }

  toggleEntire() {
    this.camera.toggleEntire();
    this.follow();
  }

  // Close the innermost modules until no more than `most` nodes are shown.
  foldTo(most) {
    const depth = (g) => (g === -1 ? 0 : 1 + depth(this.data.groups[g].parent));
    const groups = this.data.groups.map((_, g) => g).sort((a, b) => depth(b) - depth(a));
    const deepest = groups.length ? depth(groups[0]) : 0;
    for (let level = deepest; level > 1; level--) {
      const { shown } = visibleGraph(this.data, this.closed);
      if ([...shown].filter(([id, as]) => id === as && id[0] !== "g").length <= most) return;
      groups.filter((g) => depth(g) === level).forEach((g) => this.closed.add(g));
    }
  }

  // ------------------------------------------------------------------------------------------ steps

  // What a node shows at a step: `state` is from `stateAt`.
  show(state) {
    const before = this.state;
    this.data.nodes.forEach((_, i) => {
      const card = this.cards.get(`n${i}`);
      if (!card) return;
      const index = state.gradients[i];
      if (card.shown !== index) {
        this.drawPicture(card.grad, index, card.item.w / 2 + 6, card.item.w / 2 - 14);
        card.shown = index;
      }
      const label = state.written[i] ? ".grad" : "gradient";
      if (card.gradLabel.textContent !== label) card.gradLabel.textContent = label;
      setClass(card.group, "reached", index >= 0);
      if (!before || before.gradients[i] !== index || before.active.has(`n${i}`) || state.active.has(`n${i}`)) {
        card.group.setAttribute("aria-label", this.describe(i, state));
      }
      if (!before) card.group.addEventListener("click", () => this.chosen(`n${i}`));
    });
    const shownActive = new Set([...state.active].map((id) => this.layout.shown.get(id)));
    for (const [id, { group }] of this.cards) setClass(group, "active", shownActive.has(id));
    for (const edge of this.edges) {
      setClass(edge.path, "done", edge.links.some((link) => state.sent.has(link)));
    }
    this.drawFlow(state);
    this.state = state;
  }

  // The edges along which gradients go in this step, with the number that goes there.
  drawFlow(state) {
    this.flow.replaceChildren();
    for (const edge of this.flowing ?? []) edge.path.classList.remove("flowing");
    const drawn = new Map();
    for (const sent of state.step.sent) {
      const edge = this.edgeOf.get(sent.link);
      if (!edge) continue;
      if (!drawn.has(edge)) {
        const path = svg("path", { class: state.step.fault ? "fault" : "", d: edge.path.getAttribute("d") }, this.flow);
        drawn.set(edge, { path, numbers: [] });
      }
      const picture = this.data.pictures[sent.gradient];
      if (picture.numbers?.length === 1) drawn.get(edge).numbers.push(fitting(picture.numbers[0], 7));
    }
    this.flowing = [...drawn.keys()];
    for (const edge of this.flowing) edge.path.classList.add("flowing");
    for (const [edge, { path, numbers }] of drawn) {
      if (numbers.length !== 1) continue;  // there is room for one between two cards
      const { x, y } = path.getPointAtLength(path.getTotalLength() / 2);
      svg("text", { x, y: edge.low ? y + 22 : y - 10 }, this.flow, numbers[0]);
    }
    const active = this.cards.get(`n${state.step.node}`);
    if (active && state.step.fault) {
      const { item } = active;
      const badge = svg("g", { class: "badge", transform: `translate(${item.x + item.w / 2 - 32} ${item.y - 12})` }, this.flow);
      svg("rect", { width: 64, height: 20, rx: 10 }, badge);
      svg("text", { x: 32, y: 14 }, badge, "✕ wrong");
    }
  }

  describe(i, state) {
    const node = this.data.nodes[i];
    const value = node.value === undefined ? "value not saved" : `value ${inWords(this.data.pictures[node.value])}`;
    const grad = state.gradients[i] < 0 ? "no gradient yet" : `gradient ${inWords(this.data.pictures[state.gradients[i]])}`;
    return `${node.name}, ${this.opName(node) || "leaf"}, ${value}, ${grad}`;
  }

  // Mark what the reader has chosen, or only let the keyboard go on from it.
  choose(id, marked) {
    const shown = this.layout.shown.get(id) ?? id;
    for (const [other, { group }] of this.cards) setClass(group, "chosen", marked && other === shown);
    if (this.cards.has(shown)) this.setCurrent(shown);
  }

  // Have these items in sight.
  reveal(ids) {
    this.camera.reveal(ids.map((id) => this.layout.items.get(this.layout.shown.get(id) ?? id)).filter(Boolean));
  }

  // --------------------------------------------------------------------------------------- keyboard

  setCurrent(id) {
    this.cards.get(this.current)?.group.setAttribute("tabindex", -1);
    this.current = id;
    this.cards.get(id)?.group.setAttribute("tabindex", 0);
  }

  // Go to the next or previous item in the drawing.
  walk(by) {
    const at = this.order.indexOf(this.current);
    const id = this.order[Math.min(this.order.length - 1, Math.max(0, at + by))];
    this.setCurrent(id);
    this.cards.get(id).group.focus({ preventScroll: true });
    this.reveal([id]);
  }

  press(id) {
    if (id[0] === "g") this.toggle(Number(id.slice(1)));
    else this.chosen(id);
    this.cards.get(this.current)?.group.focus({ preventScroll: true });
  }
}

function groupTitle(group) {
  return group.name === group.type ? group.type : `${group.name}: ${group.type}`;
}

function setClass(element, name, on) {
  if (element.classList.contains(name) !== Boolean(on)) element.classList.toggle(name);
}
