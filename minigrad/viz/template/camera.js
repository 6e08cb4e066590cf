// The camera: which part of the drawing is in sight, and how large.
//
// It moves the entire drawing, so that nothing in it has to be laid out again.

const MARGIN = 40;  // around the drawing, for what stands out of cards
const EDGE = 20;  // between what is shown and the border of the window
const UNHURRIED = 400;  // milliseconds between two moves, under which the camera jumps
const DRAG = 5;  // pixels, beyond which a press is no click
const LEGIBLE = 0.6;  // the scale under which names are too small to be read
const PLEASANT = 0.85;  // the scale that the camera takes by itself
const LARGEST = 2;  // the scale that a small graph is shown at
const CROWDED = 0.4;  // the least that it takes to have all of a step in sight
const FRAMED = window.parent !== window;  // in a frame, a wheel without Ctrl scrolls what is around it

class Camera {
  constructor(pane, graph, buttons) {
    this.pane = pane;
    this.graph = graph;
    this.buttons = buttons;
    [this.w, this.h] = [1, 1];
    this.at = { x: 0, y: 0, scale: 1 };
    this.setMode(false, false);
    this.measure();
    this.moveByHand();
  }

  // The size of the pane without the buttons and the legend in it. It is stored: to ask for it lays
  // out the entire page.
  measure() {
    const [w, h] = [this.pane.clientWidth, this.pane.clientHeight];
    const upright = this.buttons.offsetHeight > this.buttons.offsetWidth;
    this.size = upright ? [w - this.buttons.offsetWidth - 10, h - 28] : [w, h - this.buttons.offsetHeight - 4];
  }

  // The window has another size: keep in the middle of it what is there.
  resized() {
    const [w, h] = this.size;
    const { x, y, scale } = this.at;
    this.measure();
    if (this.entire) this.fit();
    else this.move({ scale, x: x + (this.size[0] - w) / 2, y: y + (this.size[1] - h) / 2 }, false);
  }

  // Whether the scale is one that the reader has chosen, and whether it shows the entire graph.
  setMode(chosen, entire) {
    [this.chosen, this.entire] = [chosen, entire];
    document.getElementById("entire").setAttribute("aria-pressed", String(entire));
  }

  // The size of the drawing.
  resize(w, h) {
    [this.w, this.h] = [w, h];
    this.graph.setAttribute("width", Math.ceil(w) + 2 * MARGIN);
    this.graph.setAttribute("height", Math.ceil(h) + 2 * MARGIN);
  }

  move(at, smooth) {
    this.at = at;
    const now = performance.now();
    setClass(this.graph, "smooth", smooth && now - (this.moved ?? -Infinity) > UNHURRIED);
    this.moved = now;
    const [x, y] = [at.x, at.y].map((v) => v - MARGIN * at.scale);
    this.graph.style.transform = `translate(${x}px, ${y}px) scale(${at.scale})`;
    setClass(this.graph, "far", at.scale < 0.45);
  }

  fit() {
    const [w, h] = this.size;
    const scale = Math.min(LARGEST, (w - 2 * EDGE) / this.w, (h - 2 * EDGE) / this.h);
    this.move({ scale, x: (w - this.w * scale) / 2, y: (h - this.h * scale) / 2 }, false);
  }

  zoom(factor, x, y) {
    const [w, h] = this.size;
    const [cx, cy] = [x ?? w / 2, y ?? h / 2];
    const scale = Math.min(4, Math.max(0.03, this.at.scale * factor));
    const ratio = scale / this.at.scale;
    this.setMode(true, false);
    this.move({ scale, x: cx - (cx - this.at.x) * ratio, y: cy - (cy - this.at.y) * ratio }, x === undefined);
  }

  // Show the entire graph and stay there, or go back to where the step is.
  toggleEntire() {
    this.setMode(!this.entire, !this.entire);
    if (this.entire) this.fit();
  }

  // Move the camera, if need be, so that these items are in sight and can be read; where they are
  // too far apart for that, all but the first, or else the first.
  reveal(items) {
    if (this.entire || items.length === 0) return;
    const [w, h] = this.size;
    const around = this.around(items);
    const { x, y, scale } = this.at;
    const inSight = around.left * scale + x > 0 && around.right * scale + x < w && around.top * scale + y > 0 && around.low * scale + y < h;
    if (inSight && (this.chosen || scale >= LEGIBLE)) return;
    const wanted = this.chosen || scale >= LEGIBLE ? scale : PLEASANT;
    const room = this.roomFor(around);
    if (room >= wanted || (room >= CROWDED && !this.chosen)) this.centre(around, Math.min(room, wanted));
    else {
      const others = this.around(items.length > 1 ? items.slice(1) : items);
      this.centre(this.roomFor(others) >= wanted ? others : this.around(items.slice(0, 1)), wanted);
    }
  }

  around(items) {
    const [left, top] = [Math.min(...items.map((i) => i.x)), Math.min(...items.map((i) => i.y))];
    const [right, low] = [Math.max(...items.map((i) => i.x + i.w)), Math.max(...items.map((i) => i.y + i.h))];
    return { left, top, right, low };
  }

  // The scale at which there is room for all of this.
  roomFor({ left, top, right, low }) {
    const [w, h] = this.size;
    return Math.min((w - 2 * EDGE) / (right - left), (h - 2 * EDGE) / (low - top));
  }

  // Further to the right, for the pass goes on to the left, but with no empty space beside the graph.
  centre({ left, top, right, low }, scale) {
    const [w, h] = this.size;
    const x = within(0.62 * w, left * scale, right * scale, w, this.w * scale);
    const y = within(0.5 * h, top * scale, low * scale, h, this.h * scale);
    this.move({ scale, x, y }, true);
  }

  moveByHand() {
    this.pane.addEventListener("wheel", (event) => {
      if (FRAMED && !event.ctrlKey) return;
      event.preventDefault();
      const box = this.pane.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    const fingers = new Map();
    let travelled = 0;  // pixels, since a finger or button was put down
    this.pane.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      travelled = 0;
    });
    this.pane.addEventListener("click", (event) => {
      const isOfPointer = event.detail > 0;
      if (isOfPointer && travelled > DRAG) event.stopPropagation();  // a drag chooses nothing
    }, { capture: true });
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
      this.pane.addEventListener(end, (event) => fingers.delete(event.pointerId));
    }
    this.pane.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      fingers.set(event.pointerId, event);
      travelled += Math.hypot(event.clientX - last.clientX, event.clientY - last.clientY);
      const [a, b] = [...fingers.values()];
      if (b) {  // two fingers
        const other = event.pointerId === a.pointerId ? b : a;
        const distance = (e) => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY) || 1;
        const box = this.pane.getBoundingClientRect();
        const [cx, cy] = [(a.clientX + b.clientX) / 2 - box.left, (a.clientY + b.clientY) / 2 - box.top];
        this.zoom(distance(event) / distance(last), cx, cy);
      } else {
        const { x, y, scale } = this.at;
        this.move({ scale, x: x + event.clientX - last.clientX, y: y + event.clientY - last.clientY }, false);
      }
    });
  }
}

// Where a drawing of this length begins, so that the part between `from` and `to` is near a position
// in a window of this size, and within it.
function within(wanted, from, to, size, length) {
  if (length + 2 * EDGE < size) return (size - length) / 2;
  const near = Math.min(EDGE, Math.max(size - EDGE - length, wanted - (from + to) / 2));
  return Math.min(size - EDGE - to, Math.max(EDGE - from, near));
}
