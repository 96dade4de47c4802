// The tree of events with bars on a time axis. Only the rows in sight are on the page, so ten thousand scroll like ten.

import { h, put } from "./dom.js";
import { KINDS, count, kindClass, kindOf, money, span } from "./format.js";

const ROW = 28;
const MARGIN = 12;
const LEVELS = 24; // deeper ones are not set in further

export class Waterfall {
  constructor(model, { open }) {
    this.model = model;
    this.open = open;
    this.selected = null;
    this.zoom = null;
    this.rows = new Map();
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.head = h("div", { class: "wf-head" }, h("div", { class: "wf-name" }, "Event"), this.axis);
    this.sizer = h("div", { class: "wf-sizer", role: "presentation" });
    this.body = h("div", {
      class: "wf-body", role: "tree", tabindex: "0", "aria-label": "Events of the run",
      on: { scroll: () => this.soon(), keydown: (event) => this.key(event), click: (event) => this.click(event), dblclick: (event) => this.double(event) },
    }, this.sizer);
    this.empty = h("p", { class: "empty", hidden: true });
    this.element = h("div", { class: "waterfall" }, this.head, this.empty, this.body);
    this.seen = new ResizeObserver(() => this.soon());
    this.seen.observe(this.body);
  }

  close() { this.seen.disconnect(); }

  soon() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
  }

  // After the model changed: what was at the top of the window stays there.
  refresh({ keep = true } = {}) {
    const anchor = keep ? this.anchor : null;
    this.sizer.style.height = this.model.visible.length * ROW + "px";
    if (anchor && this.body.scrollTop > 0 && this.model.place.has(anchor.id)) {
      this.body.scrollTop = this.model.place.get(anchor.id) * ROW + anchor.offset;
    }
    this.draw();
  }

  range() {
    if (this.zoom) return this.zoom;
    const { first, last, running } = this.model;
    if (first === null) return [0, 1];
    const end = Math.max(last, running && this.live ? Date.now() : last);
    return [first, Math.max(end, first + 1)];
  }

  draw() {
    const { visible } = this.model;
    const top = this.body.scrollTop, height = this.body.clientHeight || 600;
    const from = Math.max(0, Math.floor(top / ROW) - MARGIN), to = Math.min(visible.length, Math.ceil((top + height) / ROW) + MARGIN);
    const range = this.range();
    this.ticks(range);
    this.body.style.setProperty("--deepest", Math.max(1, Math.min(this.model.deepest - 1, LEVELS)));
    const wanted = new Map();
    for (let index = from; index < to; index += 1) wanted.set(visible[index].event.id, index);
    for (const [id, row] of this.rows) if (!wanted.has(id)) { row.element.remove(); this.rows.delete(id); }
    for (const [id, index] of wanted) {
      const item = visible[index];
      const state = [item.event.revision, item.level, item.branch, this.model.folded.has(id), item.hit].join();
      let row = this.rows.get(id);
      if (!row || row.state !== state) {
        const element = this.row(item);
        if (row) row.element.replaceWith(element); else this.sizer.appendChild(element);
        row = { element, state };
        this.rows.set(id, row);
      }
      row.element.style.transform = "translateY(" + index * ROW + "px)";
      row.element.setAttribute("aria-posinset", index + 1);
      row.element.setAttribute("aria-setsize", visible.length);
      row.element.setAttribute("aria-selected", id === this.selected ? "true" : "false");
      this.bar(row.element, item.event, range);
    }
    const current = this.selected !== null && this.rows.has(this.selected);
    if (current) this.body.setAttribute("aria-activedescendant", "e-" + this.selected);
    else this.body.removeAttribute("aria-activedescendant");
    const first = visible[Math.floor(top / ROW)];
    this.anchor = first ? { id: first.event.id, offset: top - Math.floor(top / ROW) * ROW } : null;
    this.empty.hidden = visible.length > 0;
    this.empty.textContent = this.model.order.length ? "No event fits the filter." : "No events yet.";
  }

  row({ event, level, branch, hit }) {
    const kind = kindOf(event), folded = this.model.folded.has(event.id);
    const name = kind === "llm_call" ? event.model || event.title : event.title;
    const said = event.status === "failed" && event.error ? event.error : null;
    const label = [KINDS[kind] || kind, kind === "handoff" || kind === "message" ? null : event.agent, name, event.status,
      event.duration === null ? null : span(event.duration), said].filter(Boolean).join(", ");
    return h("div", {
      class: "row " + kindClass(kind) + (event.status === "failed" ? " bad" : event.status === "running" ? " live" : "") + (hit ? "" : " faint"),
      id: "e-" + event.id, role: "treeitem", "aria-level": level, "aria-label": label,
      "aria-expanded": branch ? String(!folded) : null, data: { id: event.id },
    },
    h("div", { class: "name", style: { "--level": Math.min(level - 1, LEVELS) } },
      branch ? h("span", { class: "fold", "aria-hidden": "true" }, folded ? "▸" : "▾") : h("span", { class: "fold" }),
      h("span", { class: "kind", "aria-hidden": "true" }, KINDS[kind] || kind),
      event.status === "failed" ? h("span", { class: "mark", title: "failed", "aria-hidden": "true" }, "✗") : null,
      event.agent && kind !== "handoff" && kind !== "message" ? h("b", {}, event.agent) : null,
      h("span", { class: "title", title: name || "" }, name || ""),
      said ? h("span", { class: "said", title: said }, said) : null,
      event.tokens ? h("span", { class: "tokens", title: [event.tokens + " tokens", money(event.cost)].filter(Boolean).join(", ") }, count(event.tokens)) : null),
    h("div", { class: "track" }, h("div", { class: "bar" }), h("span", { class: "took" })));
  }

  bar(element, event, [first, last]) {
    const track = element.lastChild, bar = track.firstChild, took = track.lastChild;
    if (event.start === null) { bar.hidden = true; took.textContent = ""; return; }
    const running = event.status === "running";
    const end = event.end ?? (running ? Math.max(this.live ? Date.now() : this.model.last, event.start) : event.start);
    const scale = 100 / (last - first);
    const left = (event.start - first) * scale, width = (end - event.start) * scale;
    bar.hidden = left > 100 || left + width < 0;
    bar.style.left = Math.max(0, left) + "%";
    bar.style.width = Math.min(100, left + width) - Math.max(0, left) + "%";
    took.textContent = running ? "…" : span(event.duration ?? end - event.start);
    // The duration stands behind its bar, before it where there is no room, or in it where there is none there either.
    const inside = left + width > 82 && left < 18;
    took.classList.toggle("in", inside);
    if (left + width > 82) { took.style.left = "auto"; took.style.right = Math.max(0, 100 - (inside ? Math.min(100, left + width) : left)) + "%"; }
    else { took.style.right = "auto"; took.style.left = Math.max(0, left + width) + "%"; }
    took.hidden = bar.hidden;
  }

  ticks([first, last]) {
    const room = this.axis.clientWidth, key = first + ":" + last + ":" + room;
    if (key === this.ticked) return;
    this.ticked = key;
    const whole = last - first, rough = whole / Math.max(2, Math.min(8, Math.floor(room / 76))), power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || rough;
    const base = this.zoom && this.model.first !== null ? first - this.model.first : 0;
    const marks = [];
    for (let at = Math.ceil(base / step) * step; at <= base + whole * 0.95; at += step) {
      marks.push(h("span", { style: { left: (at - base) / whole * 100 + "%" } }, at === 0 ? "0" : span(at).replace(".0 s", " s")));
    }
    put(this.axis, marks, this.zoom ? h("button", { type: "button", class: "unzoom", on: { click: () => this.zoomTo(null) } }, "whole run") : null);
    this.element.style.setProperty("--tick", step / whole * 100 + "%");
  }

  zoomTo(event) {
    if (event && event.start !== null) {
      const end = event.end ?? Date.now(), pad = Math.max((end - event.start) * 0.03, 1);
      this.zoom = [event.start - pad, end + pad];
    } else this.zoom = null;
    this.ticked = null;
    this.draw();
  }

  select(id, { scroll = true } = {}) {
    this.selected = id;
    if (id !== null) {
      this.model.reveal(id);
      this.sizer.style.height = this.model.visible.length * ROW + "px";
      const place = this.model.place.get(id);
      if (scroll && place !== undefined) {
        const top = place * ROW, height = this.body.clientHeight;
        if (top < this.body.scrollTop) this.body.scrollTop = Math.max(0, top - 2 * ROW);
        else if (top + ROW > this.body.scrollTop + height) this.body.scrollTop = top - height + 3 * ROW;
      }
    }
    this.draw();
  }

  fold(id, folded) {
    if (folded) this.model.folded.add(id); else this.model.folded.delete(id);
    this.model.arrange();
    this.refresh();
  }

  click(event) {
    const row = event.target.closest(".row");
    if (!row) return;
    const id = row.dataset.id;
    if (event.target.closest(".fold") && row.hasAttribute("aria-expanded")) this.fold(id, !this.model.folded.has(id));
    else this.open(id);
  }

  double(event) {
    const row = event.target.closest(".row");
    if (row && event.target.closest(".track")) this.zoomTo(this.model.byId.get(row.dataset.id));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { visible, place, folded, children, above } = this.model;
    if (!visible.length) return;
    const at = this.selected !== null && place.has(this.selected) ? place.get(this.selected) : -1;
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW) - 1);
    const move = { ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1, Home: 0, End: visible.length - 1, PageDown: at + page, PageUp: at - page }[event.key];
    const id = at >= 0 ? visible[at].event.id : null;
    if (move !== undefined) this.open(visible[Math.max(0, Math.min(visible.length - 1, move))].event.id, { moved: true });
    else if (event.key === "ArrowRight" && id && children.has(id)) {
      if (folded.has(id)) this.fold(id, false); else this.open(children.get(id)[0].id, { moved: true });
    } else if (event.key === "ArrowLeft" && id) {
      if (children.has(id) && !folded.has(id)) this.fold(id, true);
      else if (above.get(id)) this.open(above.get(id), { moved: true });
    } else if ((event.key === "Enter" || event.key === " ") && id) this.open(id);
    else if (event.key === "z") this.zoomTo(this.zoom ? null : this.model.byId.get(id));
    else return;
    event.preventDefault();
  }
}
