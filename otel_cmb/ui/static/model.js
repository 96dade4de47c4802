// The events of a run: merged as they change, ordered, nested, folded, filtered.

import { kindOf } from "./format.js";

export class Model {
  constructor() {
    this.byId = new Map();
    this.folded = new Set();
    this.query = "";
    this.node = null;
    this.visible = [];
    this.deepest = 1;
    this.shape();
  }

  // Rows as the server sends them; answers whether anything is different.
  merge({ columns, rows, removed, full }) {
    const kept = full ? new Set() : null;
    let changed = false;
    for (const row of rows) {
      const event = {};
      columns.forEach((name, place) => { event[name] = row[place]; });
      if (kept) kept.add(event.id);
      event.revision = ((this.byId.get(event.id) || {}).revision || 0) + 1;
      this.byId.set(event.id, event);
      changed = true;
    }
    if (kept) for (const id of [...this.byId.keys()]) if (!kept.has(id)) changed = this.byId.delete(id) || changed;
    for (const id of removed || []) changed = this.byId.delete(id) || changed;
    if (changed) this.shape();
    return changed;
  }

  // Order and nesting. A parent that is missing or that closes a circle counts as none.
  shape() {
    this.order = [...this.byId.values()].sort((a, b) => (a.order - b.order) || (a.id < b.id ? -1 : 1));
    const above = new Map(this.order.map((event) => [event.id, this.byId.has(event.parent) ? event.parent : null]));
    const sound = new Set();
    for (const event of this.order) {
      const path = new Set();
      let at = event.id;
      while (at !== null && !sound.has(at) && !path.has(at)) { path.add(at); at = above.get(at); }
      if (at !== null && path.has(at)) above.set(at, null);
      for (const id of path) sound.add(id);
    }
    this.above = above;
    this.children = new Map();
    this.roots = [];
    for (const event of this.order) {
      const parent = above.get(event.id);
      if (parent === null) this.roots.push(event);
      else if (this.children.has(parent)) this.children.get(parent).push(event);
      else this.children.set(parent, [event]);
    }
    this.measure();
    this.arrange();
  }

  // The span of time all events take; running ones reach to now.
  measure() {
    let first = Infinity, last = -Infinity;
    this.running = 0;
    this.failures = [];
    for (const event of this.order) {
      if (event.start !== null && event.start < first) first = event.start;
      const end = event.end ?? event.start;
      if (end !== null && end > last) last = end;
      if (event.status === "running") this.running += 1;
      if (event.status === "failed") this.failures.push(event.id);
    }
    this.first = Number.isFinite(first) ? first : null;
    this.last = Number.isFinite(last) ? last : null;
  }

  // The rows that show, top to bottom, with their level.
  arrange() {
    const wanted = this.wanted();
    this.visible = [];
    this.place = new Map();
    const waiting = this.roots.map((event) => [event, 1]).reverse();
    while (waiting.length) {
      const [event, level] = waiting.pop();
      if (wanted && !wanted.has(event.id)) continue;
      const below = this.children.get(event.id) || [];
      this.place.set(event.id, this.visible.length);
      if (level > this.deepest) this.deepest = level;
      this.visible.push({ event, level, branch: below.length > 0, hit: wanted ? wanted.get(event.id) : true });
      if (this.folded.has(event.id) && !(wanted && this.query)) continue;
      for (let index = below.length - 1; index >= 0; index -= 1) waiting.push([below[index], level + 1]);
    }
  }

  // Events that fit the filters (true), and those above them (false); null: no filter.
  wanted() {
    const text = this.query.trim().toLowerCase();
    if (!text && this.node === null) return null;
    const found = new Map();
    for (const event of this.order) {
      if (this.node !== null && event.node !== this.node) continue;
      if (text && !searched(event).includes(text)) continue;
      found.set(event.id, true);
      for (let at = this.above.get(event.id); at !== null && !found.has(at); at = this.above.get(at)) found.set(at, false);
    }
    return found;
  }

  reveal(id) {
    let changed = false;
    for (let at = this.above.get(id) ?? null; at !== null; at = this.above.get(at)) changed = this.folded.delete(at) || changed;
    if (changed) this.arrange();
  }

  foldAll() {
    for (const id of this.children.keys()) this.folded.add(id);
    this.arrange();
  }

  unfoldAll() {
    this.folded.clear();
    this.arrange();
  }
}

function searched(event) {
  if (event.searchable === undefined) {
    event.searchable = [event.title, event.agent, event.type, event.model, event.error, event.status, event.id, kindOf(event)]
      .filter(Boolean).join(" ").toLowerCase();
  }
  return event.searchable;
}
