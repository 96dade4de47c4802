// Values as what they are: text, code, conversations, tables, JSON. Nothing huge is put on the page before it is asked for.

import { copyButton, h, put } from "./dom.js";
import { bytes } from "./format.js";
import { highlight } from "./highlight.js";

const FOLD_CHARS = 1600;
const FOLD_LINES = 24;
const STEP_CHARS = 100000;
const STEP_ITEMS = 100;

export function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

export function asText(value) {
  if (typeof value === "string") return value;
  return JSON.stringify(value, (_key, item) => (typeof item === "bigint" ? String(item) : item), 2) ?? String(value);
}

// Text, folded when it is long; code is highlighted.
export function textBlock(text, { language = null, label = "text", open = false } = {}) {
  const lines = text.split("\n", 2000).length;
  const long = text.length > FOLD_CHARS || lines > FOLD_LINES;
  const body = h("pre", { class: "text" + (language ? " code" : ""), tabindex: "0", "aria-label": label });
  let shown = long && !open ? foldAt(text) : Math.min(text.length, STEP_CHARS);
  const bar = h("div", { class: "textbar" });
  const box = h("div", { class: "textbox" }, body, bar, copyButton(text, label));
  function draw() {
    const part = text.slice(0, shown);
    put(body, language ? highlight(part, language) : part);
    body.classList.toggle("cut", shown < text.length);
    const size = bytes(new Blob([text]).size) + (lines > 1 ? " · " + (lines >= 2000 ? "2000+" : lines) + " lines" : "");
    put(bar, shown < text.length
      ? h("button", { type: "button", class: "more", on: { click: () => { shown = Math.min(text.length, Math.max(shown, 0) + STEP_CHARS); draw(); } } },
        (text.length - shown > STEP_CHARS ? "Show more" : "Show all") + " · " + size)
      : long ? h("button", { type: "button", class: "more", on: { click: () => { shown = foldAt(text); draw(); } } }, "Show less · " + size) : null);
  }
  draw();
  return box;
}

function foldAt(text) {
  let at = -1;
  for (let line = 0; line < FOLD_LINES - 6; line += 1) {
    at = text.indexOf("\n", at + 1);
    if (at < 0 || at > FOLD_CHARS) break;
  }
  return at < 0 || at > FOLD_CHARS ? Math.min(text.length, FOLD_CHARS) : at;
}

// A message with its fenced code blocks as code.
export function proseBlock(text, label) {
  if (!text.includes("```") || text.length > STEP_CHARS) return textBlock(text, { label });
  const parts = [];
  text.split(/^```/m).forEach((part, index) => {
    if (index % 2 === 0) {
      if (part.trim()) parts.push(textBlock(part.trim(), { label }));
      return;
    }
    const end = part.indexOf("\n");
    const language = end < 0 ? "" : part.slice(0, end).trim();
    parts.push(textBlock(end < 0 ? part : part.slice(end + 1).trimEnd(), { language: language || "text", label: "code" }));
  });
  return h("div", {}, parts);
}

// Whatever it is, in the form that suits it.
export function valueBlock(value, label) {
  if (value === null || value === undefined) return h("span", { class: "dim" }, "null");
  if (typeof value === "string") {
    const trimmed = value.trim();
    if (/^[[{]/.test(trimmed) && trimmed.length < STEP_CHARS) {
      try { return valueBlock(JSON.parse(trimmed), label); } catch { /* it only looks like JSON */ }
    }
    return proseBlock(value, label);
  }
  if (isObject(value) && Object.keys(value).length && Object.keys(value).length <= 40) return tableBlock(value);
  if (typeof value === "object") return jsonTree(value);
  return h("span", { class: "scalar" }, String(value));
}

export function tableBlock(value) {
  return h("table", { class: "pairs" }, h("tbody", {}, Object.entries(value).map(([key, item]) => h("tr", {},
    h("th", { scope: "row" }, key),
    h("td", {}, typeof item === "object" && item !== null ? jsonTree(item)
      : typeof item === "string" && (item.length > 200 || item.includes("\n")) ? textBlock(item, { label: key }) : scalar(item))))));
}

function scalar(item) {
  return h("span", { class: "j-" + (item === null ? "null" : typeof item) }, item === null ? "null" : String(item));
}

// JSON as a tree whose branches are made when they are opened.
export function jsonTree(value, name = null, depth = 0) {
  const label = name === null ? null : h("span", { class: "j-key" }, name, ": ");
  if (value === null || typeof value !== "object") {
    const long = typeof value === "string" && (value.length > 300 || value.includes("\n"));
    return h("div", { class: "j-leaf" }, label,
      long ? textBlock(value, { label: name || "text" }) : h("span", { class: "j-" + (value === null ? "null" : typeof value) },
        typeof value === "string" ? JSON.stringify(value) : String(value)));
  }
  const keys = Object.keys(value), list = Array.isArray(value);
  if (!keys.length) return h("div", { class: "j-leaf" }, label, list ? "[]" : "{}");
  const inside = h("div", { class: "j-in" });
  const box = h("details", { class: "json" }, h("summary", {}, label, h("span", { class: "dim" },
    list ? "[" + keys.length + "]" : "{" + keys.slice(0, 4).join(", ") + (keys.length > 4 ? ", …" : "") + "}")), inside);
  let drawn = 0;
  function grow() {
    const rest = inside.querySelector(":scope > .more");
    if (rest) rest.remove();
    for (const key of keys.slice(drawn, drawn + STEP_ITEMS)) inside.appendChild(jsonTree(value[key], key, depth + 1));
    drawn += STEP_ITEMS;
    if (drawn < keys.length) {
      inside.appendChild(h("button", { type: "button", class: "more", on: { click: grow } }, (keys.length - drawn) + " more"));
    }
  }
  box.addEventListener("toggle", () => { if (box.open && !drawn) grow(); });
  if (depth < 1) { box.open = true; grow(); }
  return box;
}

// Messages as a conversation, in any of the shapes frameworks use.
export function conversation(messages) {
  if (!Array.isArray(messages)) return valueBlock(messages, "messages");
  const box = h("div", { class: "chat", role: "list", "aria-label": "Messages" });
  let drawn = 0;
  function grow() {
    const rest = box.querySelector(":scope > .more");
    if (rest) rest.remove();
    for (const message of messages.slice(drawn, drawn + STEP_ITEMS)) box.appendChild(bubble(message));
    drawn += STEP_ITEMS;
    if (drawn < messages.length) box.appendChild(h("button", { type: "button", class: "more", on: { click: grow } }, (messages.length - drawn) + " more messages"));
  }
  grow();
  return box;
}

export function bubble(message) {
  if (!isObject(message)) return h("div", { class: "bubble", role: "listitem" }, valueBlock(message, "message"));
  const role = typeof message.role === "string" ? message.role : "message";
  const name = typeof message.name === "string" ? message.name : null;
  const parts = [];
  const content = message.content ?? message.parts ?? null;
  for (const part of Array.isArray(content) ? content : content === null ? [] : [content]) parts.push(partBlock(part));
  if (message.content !== undefined && Array.isArray(message.parts)) for (const part of message.parts) parts.push(partBlock(part));
  for (const call of Array.isArray(message.tool_calls) ? message.tool_calls : []) parts.push(callBlock(call));
  if (isObject(message.function_call)) parts.push(callBlock(message.function_call));
  const known = ["role", "name", "content", "parts", "tool_calls", "function_call"];
  const rest = Object.fromEntries(Object.entries(message).filter(([key, value]) => !known.includes(key) && value !== null));
  if (Object.keys(rest).length) parts.push(tableBlock(rest));
  const kind = { system: "system", user: "user", assistant: "assistant", tool: "tool", function: "tool" }[role] || "user";
  return h("div", { class: "bubble b-" + kind, role: "listitem" },
    h("div", { class: "who" }, role, name ? h("b", {}, " " + name) : null), parts.length ? parts : h("span", { class: "dim" }, "(empty)"));
}

function partBlock(part) {
  if (typeof part === "string") return proseBlock(part, "message");
  if (!isObject(part)) return valueBlock(part, "message");
  if (part.type === "tool_call" || part.type === "tool_use") return callBlock(part);
  if (typeof part.text === "string") return proseBlock(part.text, "message");
  if (part.type === "text" && typeof part.content === "string") return proseBlock(part.content, "message");
  return jsonTree(part);
}

function callBlock(call) {
  const about = isObject(call.function) ? call.function : call;
  let given = about.arguments ?? about.input ?? about.args ?? null;
  if (typeof given === "string") try { given = JSON.parse(given); } catch { /* as it is */ }
  return h("div", { class: "call" }, h("div", { class: "who" }, "calls ", h("b", {}, String(about.name ?? "?"))), given === null ? null : valueBlock(given, "arguments"));
}

export function figures(pairs) {
  return h("dl", { class: "figures" }, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
