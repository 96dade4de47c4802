// Numbers, times and names as people read them.

import { h } from "./dom.js";

export const KINDS = {
  agent_call: "agent", llm_call: "llm", tool_call: "tool", code_exec: "code", file_gen: "file", handoff: "handoff",
  approval_requested: "approval", error: "error", info: "info", message: "message",
};

export const ENDED = new Set(["completed", "failed", "cancelled", "canceled", "skipped", "error"]);

export function kindOf(event) {
  return event.subtype === "message" ? "message" : event.type || "info";
}

export function kindClass(kind) {
  return "k-" + (KINDS[kind] || "other");
}

export function span(ms) {
  if (ms === null || ms === undefined) return "";
  if (ms < 1000) return Math.round(ms) + " ms";
  if (ms < 59950) return (ms / 1000).toFixed(1) + " s";
  const seconds = Math.round(ms / 1000), minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes + " m " + String(seconds % 60).padStart(2, "0") + " s";
  return Math.floor(minutes / 60) + " h " + String(minutes % 60).padStart(2, "0") + " m";
}

export function count(number) {
  if (number === null || number === undefined) return "";
  if (number < 10000) return number.toLocaleString("en");
  return number < 1e6 ? (number / 1e3).toFixed(1) + "k" : (number / 1e6).toFixed(2) + "M";
}

export function money(dollars) {
  if (!dollars) return "";
  if (dollars > 0 && dollars < 0.0001) return "<$0.0001";
  return dollars >= 1 ? "$" + dollars.toFixed(2) : "$" + dollars.toFixed(4);
}

export function bytes(size) {
  if (size === null || size === undefined) return "";
  if (size < 1000) return size + " B";
  return size < 1e6 ? (size / 1e3).toFixed(1) + " kB" : (size / 1e6).toFixed(1) + " MB";
}

const pad = (number) => String(number).padStart(2, "0");

// In the reader's own zone, UTC on hover.
export function when(moment, { seconds = true } = {}) {
  if (moment === null || moment === undefined) return "";
  const date = new Date(moment);
  if (Number.isNaN(date.getTime())) return "";
  const day = date.getFullYear() + "-" + pad(date.getMonth() + 1) + "-" + pad(date.getDate());
  const time = pad(date.getHours()) + ":" + pad(date.getMinutes()) + (seconds ? ":" + pad(date.getSeconds()) : "");
  const utc = date.toISOString();
  return h("time", { datetime: utc, title: utc.replace("T", " ").replace("Z", " UTC") }, day + " " + time);
}

export function statusPill(status, extra) {
  const known = { completed: "done", failed: "failed", running: "running", executing: "running", planning: "running" };
  const mark = { done: "✓", failed: "✗", running: "●" }[known[status]] || "·";
  return h("span", { class: "pill " + (known[status] || "other") + (extra ? " " + extra : "") },
    h("span", { "aria-hidden": "true" }, mark + " "), status || "?");
}

export const DIED_ADVICE = "The next process that writes into this database closes it, or `otel-cmb parked replay`";

export function diedPill(title) {
  return h("span", { class: "pill failed died", title: title || null }, h("span", { "aria-hidden": "true" }, "✗ "), "process died");
}

export function shortId(id) {
  return id && id.length > 13 ? id.slice(0, 8) : id || "";
}
