// The graph of a run's nodes: left to right, each node behind all it depends on.

import { h, s } from "./dom.js";

const WIDE = 168, HIGH = 46, GAP = 44, BETWEEN = 14, MOST = 400;

export function dagView({ nodes, edges }, { chosen, choose, href }) {
  if (!nodes.length) return null;
  // Without edges of its own the graph is what the nodes say of their parents.
  if (!edges.length) edges = nodes.filter((node) => node.parent_node_id).map((node) => ({ from_node_id: node.parent_node_id, to_node_id: node.id }));
  const shown = nodes.slice(0, MOST), places = layout(shown, edges);
  const width = Math.max(...[...places.values()].map((place) => place.x)) + WIDE + 4;
  const height = Math.max(...[...places.values()].map((place) => place.y)) + HIGH + 4;
  const picture = s("svg", { width, height, viewBox: "0 0 " + width + " " + height, role: "group", "aria-label": "Graph of the run's nodes" },
    s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      s("path", { d: "M0 0 L8 4 L0 8 z", class: "arrow" }))));
  for (const edge of edges) {
    const from = places.get(edge.from_node_id), to = places.get(edge.to_node_id);
    if (!from || !to) continue;
    const x1 = from.x + WIDE, y1 = from.y + HIGH / 2, x2 = to.x - 2, y2 = to.y + HIGH / 2, bend = GAP / 2;
    // Over several columns: straight on in its own row, the bend in the last gap.
    const turn = Math.max(x1, x2 - GAP + 2);
    picture.appendChild(s("path", {
      class: "edge", d: `M${x1} ${y1} H${turn} C${turn + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, "marker-end": "url(#arrow)",
    }, s("title", {}, [edge.dependency_type, edge.condition].filter(Boolean).join(": "))));
  }
  for (const node of shown) {
    const { x, y } = places.get(node.id), status = node.status || "pending";
    const about = [node.node_type, node.agent].filter(Boolean).join(" · ");
    const link = s("a", {
      href: href(node.id), class: "node s-" + known(status) + (node.id === chosen ? " chosen" : ""), transform: `translate(${x} ${y})`,
      "aria-label": `node ${node.name}, ${about}, ${status}`, "aria-current": node.id === chosen ? "true" : null,
    }, s("title", {}, `${node.name}\n${about}\n${status}`), s("rect", { width: WIDE, height: HIGH, rx: 8 }), s("circle", { cx: 15, cy: 17, r: 4.5 }),
    s("text", { x: 27, y: 21, class: "n1" }, cut(node.name, 18)), s("text", { x: 27, y: 37, class: "n2" }, cut(about, 22)));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      choose(node.id === chosen ? null : node.id);
    });
    picture.appendChild(link);
  }
  return h("div", { class: "dag", tabindex: "0", role: "region", "aria-label": "Nodes" }, picture,
    nodes.length > MOST ? h("p", { class: "dim" }, nodes.length - MOST + " more nodes are not drawn") : null);
}

function known(status) {
  return ["completed", "failed", "running", "skipped"].includes(status) ? status : "pending";
}

function cut(text, most) {
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

// Columns by the longest way from a start; without any edge, one after the other.
function layout(nodes, edges) {
  const ids = new Set(nodes.map((node) => node.id));
  const usable = edges.filter((edge) => ids.has(edge.from_node_id) && ids.has(edge.to_node_id) && edge.from_node_id !== edge.to_node_id);
  const column = new Map(nodes.map((node, index) => [node.id, usable.length ? 0 : index]));
  // A circle cannot push its nodes further than there are nodes.
  for (let round = 0, moved = true; moved && round < nodes.length; round += 1) {
    moved = false;
    for (const { from_node_id: from, to_node_id: to } of usable) {
      if (column.get(to) < column.get(from) + 1 && column.get(from) + 1 < nodes.length) {
        column.set(to, column.get(from) + 1);
        moved = true;
      }
    }
  }
  const filled = new Map(), places = new Map();
  for (const node of nodes) {
    const at = column.get(node.id), row = filled.get(at) || 0;
    filled.set(at, row + 1);
    places.set(node.id, { x: 2 + at * (WIDE + GAP), y: 2 + row * (HIGH + BETWEEN) });
  }
  return places;
}
