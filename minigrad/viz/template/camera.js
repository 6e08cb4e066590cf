// The camera: which part of the drawing is in sight, and how large.
//
// It moves the drawing as a whole, so that nothing in it has to be laid out again.

const MARGIN = 40;  // around the drawing, for what stands out of cards
const UNHURRIED = 400;  // milliseconds between two moves, under which the camera jumps

class Camera {
  constructor(pane, graph) {
    this.pane = pane;
    this.graph = graph;
    [this.w, this.h] = [1, 1];
    this.at = { x: 0, y: 0, scale: 1 };
    this.measure();
    this.moveByHand();
  }

  // The size of the pane, which is kept: to ask for it lays out the whole page.
  measure() {
    this.size = [this.pane.clientWidth, this.pane.clientHeight];
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
    const scale = Math.min(1.5, (w - 40) / this.w, (h - 76) / this.h);
    this.move({ scale, x: (w - this.w * scale) / 2, y: (h - 28 - this.h * scale) / 2 }, false);
  }

  zoom(factor, x, y) {
    const [w, h] = this.size;
    const [cx, cy] = [x ?? w / 2, y ?? h / 2];
    const scale = Math.min(4, Math.max(0.03, this.at.scale * factor));
    const ratio = scale / this.at.scale;
    this.move({ scale, x: cx - (cx - this.at.x) * ratio, y: cy - (cy - this.at.y) * ratio }, x === undefined);
  }

  // Move the camera, if need be, so that these items are in sight and can be read.
  reveal(items) {
    if (!items.length) return;
    const [w, h] = this.size;
    const [left, top] = [Math.min(...items.map((i) => i.x)), Math.min(...items.map((i) => i.y))];
    const [right, low] = [Math.max(...items.map((i) => i.x + i.w)), Math.max(...items.map((i) => i.y + i.h))];
    const { x, y, scale } = this.at;
    const inSight = left * scale + x > 0 && right * scale + x < w && top * scale + y > 0 && low * scale + y < h - 30;
    if (inSight && scale >= 0.4) return;
    const room = Math.min((w - 40) / (right - left), (h - 90) / (low - top));
    const wanted = Math.max(0.25, Math.min(room, Math.max(scale, 0.7)));
    // Further to the right, for the pass goes on to the left, but with no empty space beside the graph.
    const within = (at, size, length) => length + 40 < size ? (size - length) / 2 : Math.min(20, Math.max(size - 20 - length, at));
    this.move({
      scale: wanted,
      x: within(w * 0.62 - ((left + right) / 2) * wanted, w, this.w * wanted),
      y: within((h - 28) / 2 - ((top + low) / 2) * wanted, h - 28, this.h * wanted),
    }, true);
  }

  moveByHand() {
    this.pane.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.pane.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    const fingers = new Map();
    this.pane.addEventListener("pointerdown", (event) => fingers.set(event.pointerId, event));
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
      this.pane.addEventListener(end, (event) => fingers.delete(event.pointerId));
    }
    this.pane.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      fingers.set(event.pointerId, event);
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
