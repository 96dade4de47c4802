// The list of runs: newest first, filtered, paged, live.

import { h, later, put } from "./dom.js";
import { DIED_ADVICE, ENDED, count, diedPill, money, shortId, span, statusPill, when } from "./format.js";

const PAGE = 50;
const STATUSES = ["draft", "planning", "executing", "running", "paused", "waiting_approval", "completed", "failed"];
const TIMES = [["", "any time"], ["1h", "last hour"], ["24h", "last 24 hours"], ["7d", "last 7 days"], ["30d", "last 30 days"]];
const HOURS = { "1h": 1, "24h": 24, "7d": 168, "30d": 720 };

export class RunList {
  constructor(app, query) {
    this.app = app;
    this.runs = [];
    this.totals = new Map();
    this.rows = new Map();
    this.filters = { status: query.get("status") || "", agent: query.get("agent") || "", text: query.get("text") || "", since: query.get("since") || "" };
    this.build();
    this.load();
    this.poll();
  }

  close() {
    clearTimeout(this.timer);
    this.closed = true;
  }

  build() {
    const changed = later(250, () => this.narrow());
    const field = (name, label, element) => {
      element.value = this.filters[name];
      element.name = name;
      element.addEventListener("input", () => { this.filters[name] = element.value.trim(); changed(); });
      return h("label", {}, h("span", {}, label), element);
    };
    this.search = h("input", { type: "search", placeholder: "task, id, mode, model …", autocomplete: "off", "aria-keyshortcuts": "/" });
    const bar = h("form", { class: "filters", role: "search", on: { submit: (event) => event.preventDefault() } },
      field("text", "Search", this.search),
      field("status", "Status", h("select", {}, h("option", { value: "" }, "any"), STATUSES.map((status) => h("option", { value: status }, status)))),
      field("agent", "Agent", h("input", { type: "text", placeholder: "any", autocomplete: "off" })),
      field("since", "Started", h("select", {}, TIMES.map(([value, text]) => h("option", { value }, text)))));
    this.body = h("tbody", {});
    const columns = [["Run", ""], ["Status", ""], ["Started", ""], ["Duration", "num"], ["Mode", "wide"], ["Agent", ""], ["Model", "wide"],
      ["Events", "num"], ["Failed", "num"], ["Tokens", "num"], ["Cost", "num"]];
    this.table = h("table", { class: "runs" }, h("caption", { class: "offscreen" }, "Runs, newest first"),
      h("thead", {}, h("tr", {}, columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))), this.body);
    this.more = h("button", { type: "button", class: "more", hidden: true, on: { click: () => this.load(this.next) } }, "Older runs");
    this.note = h("p", { class: "empty", hidden: true });
    this.element = h("div", { class: "list" }, bar, h("div", { class: "scroll" }, this.table), this.note, this.more);
  }

  query(cursor) {
    const query = new URLSearchParams({ limit: PAGE, totals: "0" });
    for (const name of ["status", "agent", "text"]) if (this.filters[name]) query.set(name, this.filters[name]);
    if (HOURS[this.filters.since]) query.set("since", new Date(Date.now() - HOURS[this.filters.since] * 3600e3).toISOString());
    if (cursor) query.set("cursor", cursor);
    return query.toString();
  }

  narrow() {
    const query = new URLSearchParams(Object.entries(this.filters).filter(([, value]) => value)).toString();
    history.replaceState(null, "", this.app.base + "/" + (query ? "?" + query : ""));
    this.runs = [];
    this.load();
  }

  async load(cursor = null) {
    const asked = this.query(cursor);
    this.asked = asked;
    try {
      const { body } = await this.app.source.runs(asked);
      if (this.closed || this.asked !== asked) return;
      this.app.notice("");
      this.runs = cursor ? this.runs.concat(body.runs) : body.runs;
      this.next = body.next;
      this.draw();
      this.sum();
    } catch (error) { this.app.notice(error.message); }
  }

  // The first page again; what was loaded below it stays.
  poll() {
    this.timer = setTimeout(async () => {
      if (!document.hidden && this.runs.length <= 1000) try {
        const asked = this.query(null), answer = await this.app.source.runs(asked, this.filters.since ? null : this.tag);
        if (this.closed) return;
        this.app.notice("");
        if (answer && asked === this.query(null)) {
          this.tag = answer.tag;
          const fresh = new Set(answer.body.runs.map((run) => run.id));
          const before = this.runs.length;
          this.runs = answer.body.runs.concat(before > PAGE ? this.runs.slice(PAGE).filter((run) => !fresh.has(run.id)) : []);
          if (before <= PAGE) this.next = answer.body.next;
          this.draw();
          this.sum();
        } else if (this.runs.some((run) => !run.ended)) this.sum();
      } catch (error) { if (!this.closed) this.app.notice(error.message); }
      if (!this.closed) this.poll();
    }, 1500);
  }

  // Sums come after the rows: they need a look at every event of the runs shown.
  async sum() {
    if (this.summing) return;
    this.summing = true;
    try {
      for (let round = 0; round < 40 && !this.closed; round += 1) {
        const wanted = this.runs.filter((run) => !this.totals.has(run.id) || (round === 0 && !run.ended) || this.totals.get(run.id).ended !== run.ended).slice(0, 100);
        if (!wanted.length) break;
        const { totals } = await this.app.source.runTotals(wanted.map((run) => run.id));
        for (const run of wanted) if (totals[run.id]) this.totals.set(run.id, { ...totals[run.id], ended: run.ended });
        this.draw();
        if (!Object.keys(totals).length) break;
      }
    } catch { /* the list says what is wrong */ } finally { this.summing = false; }
  }

  // Rows stay the elements they are and are filled anew: a click or the focus that is under way is not lost.
  draw() {
    const rows = new Map();
    for (const run of this.runs) {
      const totals = this.totals.get(run.id), state = JSON.stringify([run, totals], (_key, value) => (typeof value === "bigint" ? String(value) : value));
      const row = this.rows.get(run.id) || { element: this.row(run) };
      if (row.state !== state) { row.state = state; this.fill(row.element, run, totals); }
      rows.set(run.id, row);
    }
    let at = this.body.firstChild;
    for (const { element } of rows.values()) {
      if (element === at) at = at.nextSibling; else this.body.insertBefore(element, at);
    }
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
    this.rows = rows;
    this.more.hidden = !this.next;
    this.note.hidden = this.runs.length > 0;
    const narrowed = Object.values(this.filters).some(Boolean);
    this.note.textContent = narrowed ? "No run fits the filter." : "No runs yet. Record one with: otel-cmb run -- python program.py";
  }

  row(run) {
    const link = h("a", { href: this.app.runPath(run.id) });
    // The link covers its row, but for the cells that have something to tell.
    return h("tr", { data: { id: run.id }, on: { click: (event) => { if (event.target.closest(".told")) link.click(); } } },
      h("td", { class: "task" }, link, h("code", { class: "dim", title: run.id }, shortId(run.id))),
      h("td", { class: "status told" }), h("td", { class: "started" }), h("td", { class: "num took" }), h("td", { class: "mode wide told cut" }), h("td", { class: "agent told cut" }), h("td", { class: "model wide told cut" }),
      h("td", { class: "num events", data: { label: "events" } }), h("td", { class: "num failures", data: { label: "failed" } }),
      h("td", { class: "num tokens", data: { label: "tokens" } }), h("td", { class: "num cost" }));
  }

  fill(row, run, totals) {
    const going = !run.ended && !ENDED.has(run.status), died = going && run.died, live = going && !died, cells = row.children, link = cells[0].firstChild;
    const task = run.task_description ? run.task_description.slice(0, 300) : "no task";
    if (link.textContent !== task) link.textContent = task;
    row.classList.toggle("going", live);
    cells[8].classList.toggle("bad", !!(totals && totals.failures));
    const content = [
      died ? diedPill(run.status + " in the database. " + DIED_ADVICE) : statusPill(run.status, live ? "going" : ""), when(run.started_at, { seconds: false }) || h("span", { class: "dim" }, "no start time"),
      run.duration_ms !== null ? span(run.duration_ms) : run.started_at && live ? span(Date.now() - new Date(run.started_at)) : "",
      run.mode, run.agent, run.model, totals ? count(totals.events) : "…", totals && totals.failures ? count(totals.failures) : "",
      totals && totals.tokens ? count(totals.tokens) : "", totals ? money(totals.cost_usd) : "",
    ];
    content.forEach((item, index) => put(cells[index + 1], item === "" ? null : item));
    for (const [index, text] of [[1, died ? null : run.status], [4, run.mode], [5, run.agent], [6, run.model]]) cells[index].title = text || "";
  }

  key(event) {
    const links = [...this.body.querySelectorAll("a")], at = links.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1 }[event.key];
    if (to === undefined || !links.length) return;
    links[Math.max(0, Math.min(links.length - 1, to))].focus();
    event.preventDefault();
  }

  title() { return "Runs"; }
  focusSearch() { this.search.focus(); }
}
