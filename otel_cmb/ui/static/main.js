// Where everything starts: the address, the theme, the keys.

import { h, put } from "./dom.js";
import { RunList } from "./list.js";
import { RunPage } from "./run.js";
import { FileSource, ServerSource } from "./source.js";

const HELP = [
  ["↑ ↓ or j k", "previous, next"], ["→ ←", "unfold or enter, fold or leave"], ["Enter", "open the event"], ["Esc", "close it"], ["/", "search"],
  ["f", "next failure"], ["e, c", "unfold all, fold all"], ["z or double-click a bar", "zoom to the event"], ["1 … 5", "views"], ["?", "this help"],
];

class App {
  constructor() {
    this.in_file = document.getElementById("data") !== null;
    const meta = document.querySelector("meta[name=base]");
    this.base = this.in_file || !meta ? "" : meta.content;
    this.source = this.in_file ? new FileSource(document) : new ServerSource(this.base);
    this.content = document.getElementById("content");
    this.note = document.getElementById("notice");
    this.theme(remembered());
    this.drawTop();
    window.addEventListener(this.in_file ? "hashchange" : "popstate", () => this.render());
    document.addEventListener("click", (event) => this.click(event));
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("visibilitychange", () => { if (!document.hidden && this.page && this.page.load && this.page.run) this.page.load(); });
    this.source.info().then((info) => { this.info = info; this.drawTop(); }, () => {});
    this.render();
  }

  // -- addresses ----------------------------------------------------------------------------------------------------

  path(path) { return (this.in_file ? "#" : this.base) + path; }

  runPath(run, { event = null, node = null, view = null, after = null } = {}) {
    const query = new URLSearchParams();
    if (node !== null && event !== null) query.set("node", node);
    if (view) query.set("view", view);
    if (after) query.set("after", after);
    const tail = event !== null ? "/events/" + encodeURIComponent(event) : node !== null ? "/nodes/" + encodeURIComponent(node) : "";
    return this.path("/runs/" + encodeURIComponent(run) + tail + (query.size ? "?" + query : ""));
  }

  route() {
    const whole = this.in_file ? location.hash.slice(1) || "/runs/" + encodeURIComponent(this.source.run_id) : location.pathname.slice(this.base.length) + location.search;
    const [path, query] = [whole.split("?")[0], new URLSearchParams(whole.split("?")[1] || "")];
    const parts = path.split("/").filter(Boolean).map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
    if (parts[0] !== "runs" || !parts[1]) return { query };
    return {
      run: parts[1], event: parts[2] === "events" ? parts[3] : null, node: parts[2] === "nodes" ? parts[3] : query.get("node"),
      view: query.get("view"), after: query.get("after"),
    };
  }

  go(path, { replace = false } = {}) {
    if (this.in_file) {
      if (replace) history.replaceState(null, "", path); else history.pushState(null, "", path);
    } else history[replace ? "replaceState" : "pushState"](null, "", path);
    this.render();
  }

  click(event) {
    const link = event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const href = typeof link.href === "string" ? link.getAttribute("href") : link.href.baseVal;
    if (link.target || !href.startsWith(this.in_file ? "#/" : this.base + "/")) return;
    event.preventDefault();
    this.go(href);
  }

  render() {
    const route = this.route();
    if (route.run && this.page instanceof RunPage && this.page.id === route.run && this.page.after === route.after) {
      this.page.go(route);
      return;
    }
    if (this.page) this.page.close();
    this.notice("");
    this.page = route.run ? new RunPage(this, route) : new RunList(this, route.query);
    put(this.content, this.page.element);
    document.title = this.page.title() + " · otel-cmb";
    this.drawTop();
  }

  // -- around the page ----------------------------------------------------------------------------------------------

  notice(text) {
    this.note.textContent = text;
    this.note.classList.toggle("shown", !!text);
  }

  drawTop() {
    const on_run = this.page instanceof RunPage;
    put(document.getElementById("top"),
      h("nav", { "aria-label": "Where you are" }, this.in_file ? h("b", { class: "logo" }, "otel-cmb") : h("a", { class: "logo", href: this.path("/") }, "otel-cmb"),
        on_run && !this.in_file ? h("span", { class: "crumb" }, h("span", { "aria-hidden": "true" }, "/ "), h("a", { href: this.path("/") }, "Runs")) : null),
      h("span", { class: "grow" }), this.info ? h("span", { class: "dim where", title: this.info.database }, this.info.database) : null,
      h("button", { type: "button", class: "plain", title: "Keys (?)", "aria-label": "Keyboard help", on: { click: () => this.help() } }, "?"),
      h("button", { type: "button", class: "plain", title: "Light or dark", "aria-label": "Switch between light and dark", on: { click: () => this.switchTheme() } }, "◐"));
  }

  theme(name) {
    if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
  }

  switchTheme() {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    this.theme(dark ? "light" : "dark");
    try { localStorage.setItem("otel-cmb-theme", dark ? "light" : "dark"); } catch { /* not kept, then */ }
    if (this.page instanceof RunPage && this.page.shown === "agents") this.page.drawView();
  }

  help() {
    const box = h("dialog", { class: "help", "aria-label": "Keys" }, h("h2", {}, "Keys"), h("dl", {}, HELP.map(([key, text]) => h("div", {}, h("dt", {}, key), h("dd", {}, text)))),
      h("form", { method: "dialog" }, h("button", {}, "Close")));
    box.addEventListener("close", () => box.remove());
    document.body.appendChild(box);
    box.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); box.close(); });
    box.showModal();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const typing = event.target.closest("input, select, textarea");
    if (typing) {
      if (event.key === "Escape") { typing.blur(); event.preventDefault(); }
      return;
    }
    if (event.key === "/") { this.page.focusSearch(); event.preventDefault(); } else if (event.key === "?") this.help();
    else this.page.key(event);
  }
}

function remembered() {
  try { return localStorage.getItem("otel-cmb-theme"); } catch { return null; }
}

window.otelCmb = new App();
