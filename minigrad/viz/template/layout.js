// Where everything goes: a layout by depth, from the leaves at the left to the loss at the right.
//
// Each open module is laid out by itself and is then one box in the layout of the module around it,
// so boxes never overlap. An edge that crosses the border of a module does so at a port of its own.
// In each layout, a node is one column left of the leftmost node that uses it; an edge that passes
// columns in between has a waypoint in each. Heights are found by sweeps over the columns: nodes are
// sorted by the mean height of their neighbours, and put as near to it as their order allows.

const CARD = { w: 148, h: 74 }, PILL = { w: 122, h: 40 }, BOX = { w: 190, h: 52 };
const GAP = { column: 74, row: 16, waypoint: 9 }, PADDING = 14, HEADER = 24, SWEEPS = 12;

// The graph as it is shown when the modules in `closed` are: items by id, and edges between them.
function visibleGraph(data, closed) {
  const parent = new Map();
  data.nodes.forEach((node, i) => parent.set(`n${i}`, node.group));
  data.frozen.forEach((frozen, i) => parent.set(`f${i}`, frozen.group));
  data.groups.forEach((group, i) => parent.set(`g${i}`, group.parent));

  const ancestors = (id) => {  // the groups around an item, the innermost first
    const chain = [];
    for (let g = parent.get(id); g !== -1; g = data.groups[g].parent) chain.push(g);
    return chain;
  };
  const shown = new Map();  // the item that stands for each: itself, or the outermost closed group
  for (const id of parent.keys()) {
    const outermost = ancestors(id).findLast((g) => closed.has(g));
    shown.set(id, outermost === undefined ? id : `g${outermost}`);
  }
  const edges = new Map();
  const add = (from, to, ...links) => {
    const [s, t] = [shown.get(from), shown.get(to)];
    if (s === t) return;
    const key = `${s}>${t}`;
    if (!edges.has(key)) edges.set(key, { s, t, links: [] });
    edges.get(key).links.push(...links);
  };
  data.links.forEach((link, i) => add(`n${link.source}`, `n${link.target}`, i));
  data.nodes.forEach((node, i) => node.frozen.forEach(([, f]) => add(`f${f}`, `n${i}`)));
  return { parent, ancestors, shown, edges: [...edges.values()] };
}

// The positions of all items and the points of all edges.
function layOut(data, closed) {
  const graph = visibleGraph(data, closed);
  const inside = new Map([[-1, []]]);  // what each open group shows
  data.groups.forEach((_, g) => inside.set(g, []));
  for (const [id, g] of graph.parent) if (graph.shown.get(id) === id) inside.get(g).push(id);

  const wanted = new Map([...inside.keys()].map((g) => [g, new Map()]));  // the legs in each group, each once
  const legs = new Map(graph.edges.map((edge) => [edge, []]));  // the group and the key of each leg
  for (const edge of graph.edges) {
    const above = graph.ancestors(edge.s), below = graph.ancestors(edge.t);
    const [out, into] = [`>${edge.s}`, `<${edge.s}`];
    const add = (g, a, b) => {
      const key = `${a.id}|${a.port}|${b.id}|${b.port}`;
      if (!wanted.get(g).has(key)) wanted.get(g).set(key, { a, b });
      legs.get(edge).push([g, key]);
    };
    let from = { id: edge.s };
    for (const g of above.filter((group) => !below.includes(group))) {
      add(g, from, { id: out, out: true });
      from = { id: `g${g}`, port: out };
    }
    let around = above.find((group) => below.includes(group)) ?? -1;
    for (const g of below.filter((group) => !above.includes(group)).reverse()) {
      add(around, from, { id: `g${g}`, port: into });
      [around, from] = [g, { id: into, in: true }];
    }
    add(around, from, { id: edge.t });
  }
  const levels = new Map();
  const layOutGroup = (g) => {
    const items = inside.get(g).map((id) => {
      if (id[0] === "n") return { id, ...CARD };
      if (id[0] === "f") return { id, ...PILL };
      const inner = Number(id.slice(1));
      if (closed.has(inner)) return { id, ...BOX };
      layOutGroup(inner);
      const { w, h, ports } = levels.get(inner);
      return { id, w, h, ports };
    });
    levels.set(g, layOutLevel(items, [...wanted.get(g)], g !== -1));
  };
  layOutGroup(-1);

  const items = new Map();
  const origins = new Map();
  const settle = (g, x, y) => {
    origins.set(g, [x, y]);
    for (const item of levels.get(g).items.values()) {
      if (item.kind !== "item") continue;
      const at = { id: item.id, x: x + item.x, y: y + item.y - item.h / 2, w: item.w, h: item.h };
      items.set(item.id, at);
      const inner = item.id[0] === "g" ? Number(item.id.slice(1)) : -1;
      if (inner >= 0 && !closed.has(inner)) settle(inner, at.x, at.y);
    }
  };
  settle(-1, 0, 0);
  const edges = graph.edges.flatMap((edge) => apart({
    ...edge,
    points: legs.get(edge).flatMap(([g, key]) => {
      const [x, y] = origins.get(g);
      return levels.get(g).points.get(key).map(([px, py]) => [x + px, y + py]);
    }),
  }));
  return { items, edges, w: levels.get(-1).w, h: levels.get(-1).h, shown: graph.shown };
}

// An edge for each link: h + h uses h twice, and gets a gradient twice.
function apart(edge) {
  if (edge.links.length < 2 || edge.s[0] !== "n" || edge.t[0] !== "n") return [edge];
  return edge.links.map((link, i) => {
    const shift = (i - (edge.links.length - 1) / 2) * Math.min(20, 48 / edge.links.length);
    return { ...edge, links: [link], low: shift > 0, points: edge.points.map(([x, y]) => [x, y + shift]) };
  });
}

// One group: `edges` are pairs of a key and { a, b }, each end an item and, if that is open, a port.
function layOutLevel(given, edges, framed) {
  const items = new Map(given.map((item) => [item.id, { ...item, kind: "item" }]));
  for (const [, { a, b }] of edges) {
    if (a.in && !items.has(a.id)) items.set(a.id, { id: a.id, w: 0, h: 2, kind: "in" });
    if (b.out && !items.has(b.id)) items.set(b.id, { id: b.id, w: 0, h: 2, kind: "out" });
  }
  const columns = intoColumns(items, edges);
  const routes = new Map();  // the ends and waypoints of each edge
  for (const [key, { a, b }] of edges) {
    const route = [a];
    for (let c = items.get(a.id).column - 1; c > items.get(b.id).column; c--) {
      const waypoint = { id: `${key}@${c}`, w: 0, h: 2, kind: "waypoint", column: c };
      items.set(waypoint.id, waypoint);
      columns.get(c).push(waypoint);
      route.push({ id: waypoint.id });
    }
    route.push(b);
    routes.set(key, route);
  }
  const order = [...columns.keys()].sort((x, y) => y - x);  // from the left
  const height = (end) => {
    const item = items.get(end.id);
    return end.port === undefined ? 0 : item.ports.get(end.port) - item.h / 2;
  };
  for (const item of items.values()) [item.left, item.right] = [[], []];
  for (const route of routes.values()) {
    for (let i = 0; i + 1 < route.length; i++) {
      const [a, b] = [items.get(route[i].id), items.get(route[i + 1].id)];
      const shift = height(route[i]) - height(route[i + 1]);
      a.right.push([b, -shift]);
      b.left.push([a, shift]);
    }
  }
  findHeights(columns, order);
  const all = [...items.values()];
  const top = Math.min(...all.map((item) => item.y - item.h / 2));
  const shift = (framed ? HEADER + PADDING / 2 : 0) - top;
  const padding = framed ? PADDING : 0;
  let x = padding;
  for (const c of order) {
    const column = columns.get(c);
    const w = Math.max(...column.map((item) => item.w));
    const edge = column.every(isPort);
    const here = !edge ? x : column[0].kind === "in" ? 0 : x - GAP.column + padding;
    for (const item of column) {
      item.x = here + w - item.w;  // near to what uses it
      item.y += shift;
      item.span = [here, here + w];
    }
    x = edge ? x : x + w + GAP.column;
  }
  const w = x - GAP.column + padding;
  const lower = Math.max(0, ...all.map((item) => item.y + item.h / 2));
  const points = new Map([...routes].map(([key, route]) => [key, route.flatMap((end, i) => {
    const item = items.get(end.id);
    const y = item.y + height(end);
    if (item.kind === "waypoint") return [[item.span[0], y], [item.span[1], y]];
    if (item.kind !== "item") return [[item.x, y]];
    return [[i === 0 ? item.x + item.w : item.x, y]];
  })]));
  const ports = new Map(all.filter(isPort).map((item) => [item.id, item.y]));
  return { items, points, ports, w, h: lower + padding };
}

// Sweep over the columns, at first with what is on one side of each, in the end with both.
function findHeights(columns, order) {
  for (const column of columns.values()) stack(column.map((item) => [item, 0, 1]));
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const leftwards = sweep % 2 === 0;
    const both = sweep >= SWEEPS - 4;
    for (const c of leftwards ? [...order].reverse() : order) {
      const wishes = columns.get(c).map((item) => {
        const near = both ? [...item.left, ...item.right] : leftwards ? item.right : item.left;
        const mean = near.reduce((sum, [other, shift]) => sum + other.y + shift, 0) / near.length;
        return [item, near.length ? mean : item.y, item.kind === "waypoint" ? 3 : 1];
      });
      if (!both) {
        wishes.sort((p, q) => p[1] - q[1]);
        columns.set(c, wishes.map(([item]) => item));
      }
      stack(wishes);
    }
  }
}

function isPort(item) {
  return item.kind === "in" || item.kind === "out";
}

// Give each item its column, counted from the right; ports are at both ends.
function intoColumns(items, edges) {
  const after = new Map([...items.keys()].map((id) => [id, []]));
  for (const [, { a, b }] of edges) after.get(a.id).push(b.id);
  const depth = new Map();
  for (const start of items.keys()) {  // the longest path to the right, without recursion
    const open = [start];
    while (open.length) {
      const id = open.at(-1);
      const unknown = depth.has(id) ? [] : after.get(id).filter((next) => !depth.has(next));
      if (unknown.length) open.push(...unknown);
      else {
        open.pop();
        const out = items.get(id).kind === "out";
        const behind = after.get(id).map((next) => depth.get(next) + 1);
        if (!depth.has(id)) depth.set(id, out ? -1 : Math.max(0, ...behind));
      }
    }
  }
  let deepest = 0;
  for (const item of items.values()) if (item.kind === "item") deepest = Math.max(deepest, depth.get(item.id));
  const columns = new Map();
  for (const item of items.values()) {
    item.column = item.kind === "in" ? deepest + 1 : depth.get(item.id);
    if (!columns.has(item.column)) columns.set(item.column, []);
    columns.get(item.column).push(item);
  }
  return columns;
}

// Put items, given with the height that each would like and a weight, below each other in this
// order: as near to the wishes as can be, in the sense of least squares (pool adjacent violators).
function stack(wishes) {
  const pools = [];
  let offset = 0;
  wishes.forEach(([item, wish, weight], i) => {
    if (i) {
      const above = wishes[i - 1][0];
      const gap = above.kind === "item" && item.kind === "item" ? GAP.row : GAP.waypoint;
      offset += above.h / 2 + gap + item.h / 2;
    }
    let pool = { sum: (wish - offset) * weight, weight, items: [[item, offset]] };
    while (pools.length && pools.at(-1).sum / pools.at(-1).weight >= pool.sum / pool.weight) {
      const last = pools.pop();
      pool = { sum: last.sum + pool.sum, weight: last.weight + pool.weight, items: [...last.items, ...pool.items] };
    }
    pools.push(pool);
  });
  for (const pool of pools) for (const [item, off] of pool.items) item.y = pool.sum / pool.weight + off;
}

// A line through the points that leaves and enters every item horizontally.
function curve(points) {
  let path = `M${points[0].map(round)}`;
  for (let i = 1; i < points.length; i++) {
    const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
    const middle = (x0 + x1) / 2;
    path += Math.abs(y0 - y1) < 0.5 || x0 === x1
      ? `L${round(x1)},${round(y1)}`
      : `C${round(middle)},${round(y0)} ${round(middle)},${round(y1)} ${round(x1)},${round(y1)}`;
  }
  return path;
}

function round(x) {
  return Math.round(x * 10) / 10;
}
