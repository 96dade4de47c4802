// One lane per agent, on the time axis: who worked when.

import { h } from "./dom.js";
import { kindOf, span } from "./format.js";

const LANE = 34, NAMES = 130;

export function lanesView(model, { open, live }) {
  const lanes = new Map();
  for (const event of model.order) {
    if (event.start === null || kindOf(event) === "message") continue;
    const name = event.agent || "no agent";
    if (!lanes.has(name)) lanes.set(name, []);
    lanes.get(name).push(event);
  }
  if (!lanes.size) return h("p", { class: "empty" }, "No events with a time yet.");
  const names = [...lanes.keys()], first = model.first, last = Math.max(model.last, model.running && live ? Date.now() : model.last, first + 1);
  const canvas = h("canvas", { class: "lanes", role: "img", "aria-label": "Lanes of " + names.map((name) => name + " (" + lanes.get(name).length + " events)").join(", ") });
  const tip = h("div", { class: "tip", hidden: true });
  const box = h("div", { class: "lanebox" }, canvas, tip);
  let boxes = [];
  function draw() {
    const width = box.clientWidth || 800, height = names.length * LANE + 24, ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    const pen = canvas.getContext("2d"), style = getComputedStyle(box), colour = (name) => style.getPropertyValue(name).trim();
    const left = Math.min(NAMES, width * 0.3), scale = (width - left - 8) / (last - first);
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    boxes = [];
    names.forEach((name, index) => {
      const top = index * LANE;
      pen.fillStyle = colour(index % 2 ? "--surface" : "--stripe");
      pen.fillRect(0, top, width, LANE);
      pen.fillStyle = colour("--text");
      pen.fillText(name.length > 18 ? name.slice(0, 17) + "…" : name, 8, top + LANE / 2 + 4, left - 12);
      // Calls first, what they did on top of them.
      for (const event of [...lanes.get(name)].sort((a, b) => (a.type === "agent_call" ? 0 : 1) - (b.type === "agent_call" ? 0 : 1))) {
        const end = event.end ?? (event.status === "running" && live ? Date.now() : event.start);
        const x = left + (event.start - first) * scale, wide = Math.max(2, (end - event.start) * scale), call = event.type === "agent_call";
        const y = top + (call ? 7 : 12), high = call ? LANE - 14 : LANE - 24;
        pen.globalAlpha = call ? 0.35 : 1;
        pen.fillStyle = colour(event.status === "failed" ? "--bad" : "--" + kindOf(event)) || colour("--info");
        pen.fillRect(x, y, wide, high);
        pen.globalAlpha = 1;
        boxes.push({ x, y, wide, high, event });
      }
    });
    pen.fillStyle = colour("--dim");
    for (let mark = 0; mark <= 4; mark += 1) pen.fillText(span((last - first) * mark / 4), left + (width - left - 60) * mark / 4, names.length * LANE + 16);
  }
  function hit(pointer) {
    const frame = canvas.getBoundingClientRect(), x = pointer.clientX - frame.left, y = pointer.clientY - frame.top;
    for (let index = boxes.length - 1; index >= 0; index -= 1) {
      const one = boxes[index];
      if (x >= one.x - 1 && x <= one.x + one.wide + 1 && y >= one.y - 3 && y <= one.y + one.high + 3) return one.event;
    }
    return null;
  }
  canvas.addEventListener("click", (pointer) => { const event = hit(pointer); if (event) open(event.id); });
  canvas.addEventListener("mousemove", (pointer) => {
    const event = hit(pointer), frame = box.getBoundingClientRect();
    tip.hidden = !event;
    canvas.classList.toggle("over", !!event);
    if (!event) return;
    tip.textContent = [kindOf(event).replace("_", " "), event.title || event.model, span(event.duration), event.error].filter(Boolean).join(" · ");
    tip.style.left = Math.min(pointer.clientX - frame.left + 12, frame.width - 220) + "px";
    tip.style.top = pointer.clientY - frame.top + 14 + "px";
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  new ResizeObserver(draw).observe(box);
  return box;
}
