// The page: which pass is shown, at which step, and what keys and buttons do.

const data = JSON.parse(document.getElementById("data").textContent);
data.pictures = data.pictures.map(([kind, ...content]) => unpack(data.kinds[kind], content));
for (const step of data.steps) step.sent = (step.sent ?? []).map(unpackSent);
for (const node of data.nodes) [node.frozen, node.options] = [node.frozen ?? [], node.options ?? []];
const find = (id) => document.getElementById(id);
const panel = new Panel(data);
const program = data.program ? new Program(data, find("program")) : null;  // before the graph, which gets what room is left
const nudge = new Nudge(data, find("nudge"));
const drawing = new Drawing(data, (id) => choose(id), () => { drawing.build(); draw(); });
const MOST = 70;  // nodes that are shown at first, if modules can be closed
const BEAT = 1100;  // milliseconds of a step

const opened = {};  // whether a kind of source is open in the panel
let [pass, position, picked, playing] = [data.passes[0], 0, null, null];

function unpackSent([link, gradient, after, before, more]) {
  return { link, gradient, after, before: before < 0 ? undefined : before, ...more };
}

// The gradients at all nodes after the first steps of a pass, and what the last of these does.
function stateAt(shown, last) {
  const gradients = Array.from(data.nodes, () => -1);
  const written = Array.from(data.nodes, () => false);
  const sentSoFar = new Set();
  for (const [node, index] of shown.initial) gradients[node] = index;
  for (let k = 0; k <= last; k++) {
    const step = data.steps[shown.steps[k]];
    if (step.kind === "seed") gradients[step.node] = step.g;
    if (step.kind === "leaf") [gradients[step.node], written[step.node]] = [step.after, true];
    for (const sent of step.sent) {
      gradients[data.links[sent.link].source] = sent.after;
      sentSoFar.add(sent.link);
    }
  }
  const step = data.steps[shown.steps[last]];
  const active = new Set([`n${step.node}`, ...step.sent.map((sent) => `n${data.links[sent.link].source}`)]);
  return { gradients, written, sent: sentSoFar, active, step };
}

function draw() {
  const state = stateAt(pass, position);
  drawing.show(state);
  program?.mark(state.step);
  const id = picked ?? `n${state.step.node}`;
  fillPanel(panel.step(state.step, pass, position), panel.node(id, state));
  drawing.choose(id, picked !== null);
  find("counter").textContent = `${position + 1} / ${pass.steps.length}`;
  find("position").value = position;
  find("position").setAttribute("aria-valuetext", `step ${position + 1} of ${pass.steps.length}`);
  for (const [button, end] of [["first", 0], ["previous", 0], ["next", pass.steps.length - 1], ["last", pass.steps.length - 1]]) {
    find(button).setAttribute("aria-disabled", String(position === end));
  }
  return state;
}

// Source that was open stays so, and a keyboard that was in the panel is there afterwards.
function fillPanel(step, node) {
  const inPanel = find("panel").contains(document.activeElement);
  const kind = (details) => `${details.parentElement.id} ${details.dataset.kind}`;
  for (const details of find("panel").querySelectorAll("details")) opened[kind(details)] = details.open;
  find("step").replaceChildren(...step);
  find("node").replaceChildren(...node);
  for (const details of find("panel").querySelectorAll("details")) details.open = opened[kind(details)] ?? false;
  if (inPanel) find(picked === null ? "step" : "node").querySelector("h2").focus({ preventScroll: true });
}

function goTo(k) {
  find("panel").scrollTop = 0;  // first, for it asks for a layout
  position = Math.min(pass.steps.length - 1, Math.max(0, k));
  picked = null;
  const state = draw();
  drawing.follow();
  find("live").textContent = `Step ${position + 1} of ${pass.steps.length}. ${panel.sentence(state.step, pass)}`;
}

function take(key) {
  pass = data.passes.find((one) => one.key === key);
  for (const one of data.passes) find(`pass-${one.key}`).setAttribute("aria-pressed", String(one === pass));
  find("about").textContent = pass.about;
  find("position").max = pass.steps.length - 1;
  find("to-fault").hidden = pass.fault < 0;
  find("mark").hidden = pass.fault < 0;
  find("mark").style.left = `${(100 * pass.fault) / Math.max(1, pass.steps.length - 1)}%`;
  stop();
  goTo(0);
  find("live").textContent = `${pass.title}. ${pass.about} ${find("live").textContent}`;
}

function choose(id) {
  picked = id;
  if (id[0] === "n") nudge.take(Number(id.slice(1)));
  draw();
  find("live").textContent = find("node").querySelector("h2").textContent;
  find("node").scrollIntoView({ block: "nearest" });
}

function stop() {
  clearInterval(playing);
  playing = null;
  find("play").setAttribute("aria-label", "Play");
  find("play").textContent = "▶";
}

function play() {
  if (playing !== null) return stop();
  if (position === pass.steps.length - 1) goTo(0);
  find("play").setAttribute("aria-label", "Pause");
  find("play").textContent = "❚❚";
  playing = setInterval(() => {
    if (position === pass.steps.length - 1) stop();
    else goTo(position + 1);
  }, BEAT);
}

function byHand(k) {
  stop();
  goTo(k);
}

function turn() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

const KEYS = {
  ArrowRight: () => byHand(position + 1),
  ArrowLeft: () => byHand(position - 1),
  Home: () => byHand(0),
  End: () => byHand(pass.steps.length - 1),
  " ": play,
  "+": () => drawing.camera.zoom(1.25),
  "=": () => drawing.camera.zoom(1.25),
  "-": () => drawing.camera.zoom(0.8),
  0: () => drawing.toggleEntire(),
  m: () => drawing.foldAll(),
};

// Whether keys should scroll an element, which is wider than its box.
function scrolls(element) {
  return element.matches("pre, .numbers") && element.scrollWidth > element.clientWidth;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target.closest?.("button, input, select, summary, pre, .numbers");
  const card = event.target.closest?.(".card");
  if (card && event.key === "ArrowDown") drawing.walk(1);
  else if (card && event.key === "ArrowUp") drawing.walk(-1);
  else if (card && event.key === "Enter") drawing.press(card.dataset.id);
  else if (on && (event.key === " " || on.matches("input, select") || scrolls(on))) return;
  else if (event.key in KEYS) KEYS[event.key]();
  else return;
  event.preventDefault();
});

for (const [id, action] of Object.entries({
  first: KEYS.Home, previous: KEYS.ArrowLeft, play, next: KEYS.ArrowRight, last: KEYS.End,
  closer: KEYS["+"], farther: KEYS["-"], entire: KEYS[0], fold: KEYS.m, theme: turn,
  "to-fault": () => byHand(pass.fault),
})) find(id).addEventListener("click", action);
find("position").addEventListener("input", (event) => byHand(Number(event.target.value)));
find("panel").addEventListener("click", (event) => {
  const to = event.target.closest("[data-to]");
  if (to) {
    choose(to.dataset.to);
    drawing.reveal([to.dataset.to]);
  }
});

for (const one of data.passes) {
  const button = html("button", { type: "button", id: `pass-${one.key}` }, one.fault >= 0 ? "✕ " : "", one.title);
  button.addEventListener("click", () => take(one.key));
  find("passes").append(button);
}
find("fold").hidden = data.groups.length === 0;
find("legend").append(
  html("span", { class: "key path" }, "gradient"), html("span", { class: "key frozen" }, "no gradient"),
  data.pictures.some((picture) => picture.cells || picture.numbers.length > 1) ? html("span", { class: "key scale" }, "− 0 +") : "",
  data.pictures.some((picture) => picture.broken || picture.numbers?.some((x) => typeof x === "string")) ? html("span", { class: "key broken" }, "not finite") : "",
  html("span", { class: "keys" }, `← → step · space play · + − 0 zoom · ${FRAMED ? "ctrl + wheel" : "wheel"}, drag`));

drawing.foldTo(MOST);
drawing.build();
take(data.passes[0].key);
drawing.start();
function fitAgain() {
  drawing.camera.resized();
  drawing.follow();
}

addEventListener("resize", fitAgain);
for (const below of ["nudge", "program"]) find(below).addEventListener("toggle", fitAgain);
document.documentElement.dataset.ready = "";
