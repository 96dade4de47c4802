// One run: its graph, its events, what it cost, and the event that is open.

import { copyButton, h, later, put } from "./dom.js";
import { DIED_ADVICE, ENDED, bytes, count, diedPill, money, shortId, span, statusPill, when } from "./format.js";
import { dagView } from "./dag.js";
import { lanesView } from "./lanes.js";
import { Model } from "./model.js";
import { panelView } from "./panel.js";
import { figures, textBlock } from "./values.js";
import { Waterfall } from "./waterfall.js";

const VIEWS = [["timeline", "Timeline"], ["agents", "Agents"], ["totals", "Totals"], ["files", "Files"], ["messages", "Messages"]];
const FAST = 500, SLOW = 5000, SILENT = 30000;

export class RunPage {
  constructor(app, route) {
    this.app = app;
    this.id = route.run;
    this.after = route.after;
    this.model = new Model();
    this.graph = { nodes: [], edges: [] };
    this.changed_at = Date.now();
    this.build();
    this.load().then(() => this.go(route));
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    clearInterval(this.clock);
    this.waterfall.close();
  }

  build() {
    this.waterfall = new Waterfall(this.model, { open: (id, how) => this.openEvent(id, how) });
    this.head = h("header", { class: "runhead" });
    this.dag = h("div", { class: "dagbox" });
    this.search = h("input", { type: "search", placeholder: "Find in events", "aria-label": "Find in events", autocomplete: "off" });
    this.search.addEventListener("input", later(80, () => { this.model.query = this.search.value; this.filter(); }));
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "ArrowDown") return;
      const first = this.model.visible.find((item) => item.hit);
      if (first) this.openEvent(first.event.id, { moved: true });
      this.waterfall.body.focus();
      event.preventDefault();
    });
    this.found = h("span", { class: "dim", role: "status" });
    this.next = h("button", { type: "button", class: "failures", hidden: true, title: "Next failure (f)", on: { click: () => this.nextFailure() } });
    this.nodeChip = h("span", { class: "chip", hidden: true });
    this.tools = h("div", { class: "tools" }, this.search, this.found, this.nodeChip, this.next, h("span", { class: "grow" }),
      h("button", { type: "button", title: "Unfold all (e)", "aria-label": "Unfold all", on: { click: () => this.unfold() } }, "⊞"),
      h("button", { type: "button", title: "Fold all (c)", "aria-label": "Fold all", on: { click: () => this.fold() } }, "⊟"));
    this.tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Views" }, VIEWS.map(([id, name]) => h("button", {
      type: "button", role: "tab", id: "tab-" + id, "aria-controls": "view", data: { view: id },
      on: { click: () => this.navigate({ view: id }), keydown: (event) => this.tabKey(event) },
    }, name)));
    this.view = h("div", { id: "view", class: "view", role: "tabpanel" });
    this.panel = h("aside", { class: "panel", hidden: true, "aria-label": "Event details", tabindex: "-1" });
    this.cutNote = h("p", { class: "cutnote", hidden: true });
    this.element = h("div", { class: "run" }, h("div", { class: "mainpart" }, this.head, this.dag, this.tabs, this.cutNote, this.view), this.panel);
    this.clock = setInterval(() => this.tick(), 1000);
  }

  async load() {
    try {
      const answer = await this.app.source.live(this.id, this.token, this.after);
      if (this.closed) return;
      this.app.notice("");
      const came = this.missing;
      if (came) this.miss(false);
      if (answer) {
        this.token = answer.tag;
        this.take(answer.body);
      }
      if (came) this.go(this.route);
      this.failed = false;
    } catch (error) {
      if (this.closed) return;
      this.failed = true;
      if (error.status === 404) {
        this.miss(true);
        put(this.head, h("h1", {}, "No such run"), h("p", {}, error.message), h("p", {}, h("a", { href: this.app.path("/") }, "All runs")));
      } else this.app.notice(error.message + "; trying again");
    }
    if (this.app.source.live_view) this.wait();
  }

  // An unknown run has no views; it may come, or be gone again.
  miss(missing) {
    this.missing = missing;
    this.token = this.headed = null;
    this.element.classList.toggle("missing", missing);
    document.title = this.title();
  }

  wait() {
    clearTimeout(this.timer);
    const pause = document.hidden || (this.run && this.ended() && Date.now() - this.changed_at > 10000) || this.failed ? SLOW : FAST;
    this.timer = setTimeout(() => this.load(), pause);
  }

  take(body) {
    const first = !this.run, was = this.run;
    this.run = body.run;
    this.died = Boolean(body.run.died);
    this.changed_at = Date.now();
    this.after_next = body.next;
    if (body.graph) { this.graph = body.graph; this.drawDag(); }
    this.waterfall.live = !this.ended() && !this.died;
    const changed = this.model.merge(body);
    this.drawHead();
    this.drawCut();
    if (changed || first) {
      this.drawTools();
      if (this.shown === "timeline") this.waterfall.refresh();
      else if (this.shown) this.drawView();
    } else if (was && was.status !== this.run.status) this.waterfall.draw();
    if (this.selected && changed && body.rows.some((row) => row[0] === this.selected)) this.readEvent(this.selected);
  }

  ended() { return this.run.ended || ENDED.has(this.run.status); }

  tick() {
    if (!this.run || this.ended() || this.died || document.hidden) return;
    this.drawHead();
    if (this.shown === "timeline" && this.model.running) this.waterfall.draw();
  }

  // -- what the address says ----------------------------------------------------------------------------------------

  go(route) {
    this.route = route;
    if (this.missing) return;
    const view = VIEWS.some(([id]) => id === route.view) ? route.view : "timeline";
    if (this.model.node !== (route.node || null)) { this.model.node = route.node || null; this.filter(); this.drawDag(); }
    if (this.shown !== view) { this.shown = view; this.drawView(); }
    for (const tab of this.tabs.children) {
      const on = tab.dataset.view === view;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
    }
    this.view.setAttribute("aria-labelledby", "tab-" + view);
    this.drawTools();
    if ((route.event || null) !== this.selected) this.select(route.event || null);
  }

  navigate(change, { replace = false } = {}) {
    const route = { run: this.id, after: this.after, view: this.shown === "timeline" ? null : this.shown, node: this.model.node, event: this.selected, ...change };
    this.app.go(this.app.runPath(this.id, route), { replace });
  }

  openEvent(id, { moved = false } = {}) {
    this.navigate({ event: id }, { replace: moved || this.selected !== null });
    if (!moved && matchMedia("(max-width: 760px)").matches) this.panel.focus();
  }

  closeEvent() {
    this.navigate({ event: null });
    this.waterfall.body.focus();
  }

  select(id) {
    this.selected = id;
    this.waterfall.select(id);
    this.element.classList.toggle("open", id !== null);
    this.panel.hidden = id === null;
    if (id === null) { put(this.panel); return; }
    clearTimeout(this.reading);
    this.reading = setTimeout(() => this.readEvent(id, true), 40);
  }

  async readEvent(id, fresh = false) {
    if (this.asking) this.asking.abort();
    this.asking = new AbortController();
    try {
      const found = await this.app.source.event(id, this.asking.signal);
      if (this.closed || this.selected !== id) return;
      const top = this.panel.scrollTop;
      const opened = fresh ? null : [...this.panel.querySelectorAll("details")].map((box) => box.open);
      put(this.panel, panelView(found, {
        href: (event) => this.app.runPath(this.id, { ...this.route, event }), nodeHref: (node) => this.app.runPath(this.id, { ...this.route, node, view: null }),
        close: () => this.closeEvent(), jaeger: (this.app.info || {}).jaeger_url, model: this.model,
      }));
      if (opened) [...this.panel.querySelectorAll("details")].forEach((box, index) => { if (opened[index]) box.open = true; });
      this.panel.scrollTop = fresh ? 0 : top;
    } catch (error) {
      if (error.name === "AbortError" || this.closed || this.selected !== id) return;
      put(this.panel, h("div", { class: "event" }, h("button", { type: "button", class: "close", "aria-label": "Close event", on: { click: () => this.closeEvent() } }, "×"), h("p", {}, error.message)));
    }
  }

  // -- drawing ------------------------------------------------------------------------------------------------------

  drawHead() {
    const { run } = this, totals = run.totals || {}, going = !this.ended();
    const took = run.duration_ms ?? (going && run.started_at ? ((this.died && this.model.last) || Date.now()) - new Date(run.started_at) : null);
    const silent = going && !this.died ? this.silence() : null;
    const key = JSON.stringify([run, silent, this.died, going ? Math.floor((took || 0) / 1000) : 0], (_key, value) => (typeof value === "bigint" ? String(value) : value));
    if (key === this.headed) return;
    this.headed = key;
    put(this.head,
      h("div", { class: "line" }, statusPill(run.status, going && !this.died ? "going" : ""),
        silent ? h("span", { class: "pill silent", title: "Events are still marked as running, but nothing has been written" }, "no news for " + span(silent)) : null,
        this.diedNote(),
        h("code", { class: "dim", title: run.id }, shortId(run.id)), copyButton(run.id, "run id")),
      h("h1", {}, run.task_description && run.task_description.length < 240 ? run.task_description : run.task_description ? run.task_description.slice(0, 240) + "…" : "Run " + shortId(run.id)),
      figures([
        ["started", when(run.started_at) || "no start time"], ["duration", span(took)], ["mode", run.mode], ["agent", run.agent], ["model", run.model],
        ["events", count(totals.events)], ["failed", totals.failures ? h("span", { class: "bad" }, count(totals.failures)) : ""],
        ["tokens", totals.tokens ? count(totals.tokens) : ""], ["cost", money(totals.cost_usd)],
      ]));
    document.title = this.title();
  }

  // How long nothing was written to a run that has not ended; null while it may just be busy.
  silence() {
    const last = Math.max(this.model.last || 0, this.run.started_at ? new Date(this.run.started_at).getTime() : 0, this.changes_seen || 0);
    if (!last) return null;
    const quiet = Date.now() - last;
    return quiet > SILENT ? Math.floor(quiet / 1000) * 1000 : null;
  }

  diedNote() {
    const known = !this.ended() && this.died;
    const died = known || this.model.failures.some((id) => /process ended before the span did/.test(this.model.byId.get(id).error || ""));
    return died ? diedPill(known ? DIED_ADVICE : null) : null;
  }

  drawCut() {
    this.cutNote.hidden = !this.after_next && !this.after;
    if (this.cutNote.hidden) return;
    put(this.cutNote, this.after ? h("a", { href: this.app.runPath(this.id) }, "« from the start") : null, " ",
      (this.run.totals ? count(this.model.order.length) + " of " + this.run.totals.events.toLocaleString("en") + " events are shown " : ""),
      this.after_next ? h("a", { href: this.app.runPath(this.id, { after: this.after_next }) }, "the next ones »") : null);
  }

  drawDag() {
    const left = this.dag.firstChild ? this.dag.firstChild.scrollLeft : 0;
    const view = dagView(this.graph, {
      chosen: this.model.node, choose: (node) => this.navigate({ node, view: null }), href: (node) => this.app.runPath(this.id, { ...this.route, node }),
    });
    put(this.dag, view);
    if (view) view.scrollLeft = left;
  }

  drawTools() {
    const failures = this.model.failures.length;
    this.next.hidden = !failures;
    this.next.textContent = "✗ " + failures + " failed";
    this.nodeChip.hidden = this.model.node === null;
    if (this.model.node !== null) {
      const node = this.graph.nodes.find((item) => item.id === this.model.node);
      put(this.nodeChip, "node " + (node ? node.name : this.model.node), h("button", { type: "button", "aria-label": "Show all nodes", on: { click: () => this.navigate({ node: null }) } }, "×"));
    }
    const hits = this.model.query.trim() || this.model.node !== null ? this.model.visible.filter((item) => item.hit).length : null;
    this.found.textContent = hits === null ? "" : hits + " found";
  }

  filter() {
    this.model.arrange();
    this.waterfall.anchor = null;
    this.waterfall.refresh({ keep: false });
    this.drawTools();
  }

  fold() { this.model.foldAll(); this.waterfall.refresh(); }
  unfold() { this.model.unfoldAll(); this.waterfall.refresh(); }

  nextFailure() {
    const { failures } = this.model;
    if (!failures.length) return;
    this.openEvent(failures[(failures.indexOf(this.selected) + 1) % failures.length], { moved: true });
  }

  drawView() {
    if (this.shown === "timeline") {
      if (this.view.firstChild !== this.tools) put(this.view, this.tools, this.waterfall.element);
      this.waterfall.refresh();
    } else if (this.shown === "agents") put(this.view, lanesView(this.model, { open: (id) => this.openEvent(id), live: !this.ended() && !this.died }));
    else this.fetchView(this.shown);
  }

  async fetchView(view) {
    if (this.fetching === view) return;
    this.fetching = view;
    try {
      const data = await this.app.source[view](this.id);
      if (this.closed || this.shown !== view) return;
      put(this.view, { totals: totalsView, files: (got) => this.filesView(got.files), messages: (got) => this.messagesView(got.messages) }[view](data));
    } catch (error) { if (!this.closed) this.app.notice(error.message); } finally { this.fetching = null; }
  }

  eventLink(id, text) {
    return id ? h("a", { href: this.app.runPath(this.id, { ...this.route, event: id }) }, text) : text;
  }

  filesView(files) {
    if (!files.length) return h("p", { class: "empty" }, "No files.");
    return h("div", { class: "scroll" }, h("table", { class: "grid" }, h("thead", {}, h("tr", {}, ["File", "Type", "Size", "Made"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, files.slice(0, 2000).map((file) => h("tr", {}, h("td", { class: "path" }, this.eventLink(file.event_id, file.file_path || "?")), h("td", {}, file.file_type), h("td", { class: "num" }, bytes(file.size_bytes)), h("td", {}, when(file.created_at)))))));
  }

  messagesView(messages) {
    if (!messages.length) return h("p", { class: "empty" }, "No messages.");
    const box = h("div", { class: "chat", role: "list", "aria-label": "Messages between agents" });
    let drawn = 0;
    const grow = () => {
      const rest = box.querySelector(":scope > .more");
      if (rest) rest.remove();
      for (const message of messages.slice(drawn, drawn + 100)) {
        box.appendChild(h("div", { class: "bubble b-user", role: "listitem" }, h("div", { class: "who" }, this.eventLink(message.event_id, h("b", {}, message.sender || "?")),
          " → ", h("b", {}, message.recipient || "?"), h("span", { class: "grow" }), when(message.timestamp), message.tokens ? " · " + count(message.tokens) + " tokens" : ""), textBlock(message.content || "", { label: "message" })));
      }
      drawn += 100;
      if (drawn < messages.length) box.appendChild(h("button", { type: "button", class: "more", on: { click: grow } }, (messages.length - drawn) + " more messages"));
    };
    grow();
    return box;
  }

  // -- keys ---------------------------------------------------------------------------------------------------------

  tabKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const tabs = [...this.tabs.children], to = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
    to.focus();
    to.click();
    event.preventDefault();
  }

  key(event) {
    if (this.missing) return;
    if (event.key === "Escape") { if (this.selected) this.closeEvent(); } else if (event.key === "f") this.nextFailure();
    else if (event.key === "e") this.unfold();
    else if (event.key === "c") this.fold();
    else if (/^[1-5]$/.test(event.key)) this.navigate({ view: VIEWS[event.key - 1][0] });
    else if (this.shown === "timeline" && /^(Arrow(Up|Down|Left|Right)|Home|End|Page(Up|Down)|[jkz])$/.test(event.key) && !this.panel.contains(document.activeElement) && !this.dag.contains(document.activeElement)) {
      this.waterfall.body.focus();
      this.waterfall.key(event);
      return;
    } else return;
    event.preventDefault();
  }

  title() { return this.missing ? "No such run" : ((this.run && this.run.task_description) || "Run " + shortId(this.id)).slice(0, 80); }
  focusSearch() { if (this.missing) return; if (this.shown !== "timeline") this.navigate({ view: null }); this.search.focus(); }
}

function totalsView(totals) {
  const tables = [["By agent", totals.agents], ["By tool", totals.tools], ["By model", totals.models]].map(([name, shares]) => (shares.length ? h("section", {}, h("h2", {}, name), h("div", { class: "scroll" },
    h("table", { class: "grid" }, h("thead", {}, h("tr", {}, ["Name", "Calls", "Failed", "Time", "Tokens", "Cost"].map((column, index) => h("th", { scope: "col", class: index ? "num" : "" }, column)))),
      h("tbody", {}, shares.map((share) => h("tr", {}, h("th", { scope: "row" }, share.name), h("td", { class: "num" }, count(share.calls)), h("td", { class: "num" + (share.failures ? " bad" : "") }, share.failures || ""),
        h("td", { class: "num" }, span(share.duration_ms)), h("td", { class: "num" }, share.tokens ? count(share.tokens) : ""), h("td", { class: "num" }, money(share.cost_usd)))))))) : null));
  return h("div", { class: "totals" }, tables.some(Boolean) ? tables : h("p", { class: "empty" }, "Nothing to add up yet."),
    h("p", { class: "dim" }, "Time includes what was called in between. Each token and each cent is counted once, at the event that spent it."));
}
