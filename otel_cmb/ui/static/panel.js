// One event, readable for what it is.

import { add, copyButton, h } from "./dom.js";
import { KINDS, bytes, count, kindClass, kindOf, money, shortId, span, statusPill, when } from "./format.js";
import { asText, bubble, conversation, figures, isObject, jsonTree, proseBlock, tableBlock, textBlock, valueBlock } from "./values.js";

function section(name, ...content) {
  return h("section", {}, h("h3", {}, name), content);
}

function folded(name, make, { open = false } = {}) {
  const inside = h("div", { class: "folded" });
  const box = h("details", {}, h("summary", {}, name), inside);
  let made = false;
  const fill = () => { if (!made) { made = true; add(inside, [make()]); } };
  box.addEventListener("toggle", () => { if (box.open) fill(); });
  if (open) { box.open = true; fill(); }
  return box;
}

// How each type of event is told: inputs, outputs and meta that are used up here are not repeated below.
const TOLD = {
  agent_call(event, use) {
    const parts = [];
    const message = use.input("message"), response = use.output("response");
    if (message !== undefined) parts.push(bubble({ role: "user", name: event.meta.sender, content: message }));
    if (response !== undefined) parts.push(bubble({ role: "assistant", name: event.agent_name, content: response }));
    const context = use.input("context");
    return [parts.length ? section("Conversation", h("div", { class: "chat", role: "list", "aria-label": "Messages" }, parts)) : null,
      filled(context) ? section("Context", valueBlock(context, "context")) : null];
  },
  message(event, use) {
    const sender = use.input("sender"), recipient = use.input("recipient"), content = use.input("content");
    return [section("Message", h("p", { class: "who" }, h("b", {}, String(sender ?? "?")), " → ", h("b", {}, String(recipient ?? "?"))),
      content === undefined ? null : h("div", { class: "bubble b-user" }, typeof content === "string" ? proseBlock(content, "message") : valueBlock(content, "message")))];
  },
  llm_call(event, use) {
    const asked = use.input("messages"), answered = use.output("messages");
    return [asked === undefined ? null : section("Prompt", conversation(asked)), answered === undefined ? null : section("Answer", conversation(answered))];
  },
  tool_call(event, use) {
    const name = use.input("tool_name"), given = use.input("arguments"), result = use.output("result");
    return [section("Call", h("p", { class: "who" }, h("b", {}, String(name ?? "?"))), given === undefined ? null : valueBlock(given, "arguments")),
      result === undefined ? null : section("Result", valueBlock(result, "result"))];
  },
  code_exec(event, use) {
    const code = use.input("code"), result = use.output("result"), language = use.meta("language"), exit = use.meta("exit_code");
    return [code === undefined ? null : section("Code" + (language ? " · " + language : ""), textBlock(asText(code), { language: language || "python", label: "code" })),
      section("Output", exit === undefined ? null : h("p", {}, h("span", { class: "pill " + (Number(exit) ? "failed" : "done") }, "exit code " + exit)),
        result === undefined || result === "" ? h("p", { class: "dim" }, event.status === "running" ? "still running" : "no output")
          : textBlock(asText(result), { label: "output" }))];
  },
  file_gen(event, use) {
    const path = use.input("file_path");
    return [section("File", h("p", { class: "path" }, String(path ?? "?"), path ? copyButton(String(path), "path") : null),
      figures([["type", use.input("file_type")], ["size", bytes(use.meta("size_bytes"))]]))];
  },
  handoff(event, use) {
    const from = use.input("from_agent"), to = use.input("to_agent"), context = use.input("context"), reason = use.meta("reason");
    return [section("Handoff", h("p", { class: "who" }, h("b", {}, String(from ?? "?")), " → ", h("b", {}, String(to ?? "?"))),
      reason ? h("p", {}, String(reason)) : null, filled(context) ? valueBlock(context, "context") : null)];
  },
  approval_requested(event, use) {
    const prompt = use.input("prompt"), response = use.output("response");
    return [section("Approval", prompt === undefined ? null : bubble({ role: "assistant", name: event.agent_name, content: prompt }),
      response === undefined ? h("p", { class: "dim" }, "no answer yet") : bubble({ role: "user", content: response }))];
  },
};

function filled(value) {
  return value !== undefined && value !== null && value !== "" && !(typeof value === "object" && !Object.keys(value).length);
}

export function panelView({ event, spans = [], parent, children }, { href, nodeHref, close, jaeger, model }) {
  const meta = isObject(event.meta) ? event.meta : {}, inputs = isObject(event.inputs) ? event.inputs : {}, outputs = isObject(event.outputs) ? event.outputs : {};
  const otel = isObject(meta.otel) ? meta.otel : {};
  const used = { inputs: new Set(), outputs: new Set(), meta: new Set(["otel"]) };
  const take = (from, name, set) => (key) => { if (key in from) { used[set].add(key); return from[key]; } return undefined; };
  const use = { input: take(inputs, "inputs", "inputs"), output: take(outputs, "outputs", "outputs"), meta: take(meta, "meta", "meta") };
  const kind = event.event_subtype === "message" ? "message" : event.event_type || "info";
  const told = (TOLD[kind] || (() => []))({ ...event, meta }, use);
  const line = model.byId.get(event.id), title = (line && (kind === "llm_call" ? line.model : line.title)) || "";
  const stack = use.meta("stack") ?? meta.stacktrace ?? null, errorType = use.meta("error_type");
  const left = (value, names) => (isObject(value) ? Object.fromEntries(Object.entries(value).filter(([key]) => !names.has(key))) : value);
  const restIn = left(event.inputs, used.inputs), restOut = left(event.outputs, used.outputs);
  for (const key of ["model", "tokens", "prompt_tokens", "completion_tokens", "cost_usd", "temperature", "finish_reason"]) use.meta(key);
  const restMeta = left(event.meta, used.meta);
  const text = (key) => (spans.length && typeof spans[0][key] === "string" ? spans[0][key] : typeof otel[key] === "string" ? otel[key] : null);
  const trace = text("trace_id"), spanId = text("span_id");
  const above = parent ? lineLink(fromRow(parent)) : model.byId.has(event.parent_event_id) ? lineLink(model.byId.get(event.parent_event_id)) : null;
  const below = (children.length ? children.map(fromRow) : model.children.get(event.id) || []).map(lineLink);

  return h("article", { class: "event", "aria-label": "Event" },
    h("header", { class: kindClass(kind) },
      h("div", { class: "eventbar" }, h("span", { class: "kind" }, KINDS[kind] || kind), statusPill(event.status),
        h("span", { class: "grow" }), h("button", { type: "button", class: "close", "aria-label": "Close event", title: "Close (Esc)", on: { click: close } }, "×")),
      h("h2", {}, [event.agent_name, title].filter(Boolean).join(" · ") || KINDS[kind] || kind),
      figures([
        ["started", when(event.started_at ?? event.timestamp)], ["took", span(event.duration_ms)], ["model", typeof meta.model === "string" ? meta.model : null],
        ["tokens", number(meta.tokens)], ["prompt", number(meta.prompt_tokens)], ["completion", number(meta.completion_tokens)],
        ["cost", typeof meta.cost_usd === "number" ? money(meta.cost_usd) : null], ["temperature", plain(meta.temperature)], ["finish", plain(meta.finish_reason)],
      ])),
    event.error_message || stack ? h("section", { class: "errors", role: "alert" }, h("h3", {}, "Error", errorType ? h("code", {}, " " + String(errorType)) : null),
      event.error_message ? textBlock(asText(event.error_message), { label: "error message" }) : null,
      stack ? folded("Stack", () => textBlock(asText(stack), { label: "stack", open: true }), { open: true }) : null) : null,
    told,
    filled(restIn) ? section("Inputs", valueBlock(restIn, "inputs")) : null,
    filled(restOut) ? section("Outputs", valueBlock(restOut, "outputs")) : null,
    filled(restMeta) ? section("Meta", isObject(restMeta) ? tableBlock(restMeta) : valueBlock(restMeta, "meta")) : null,
    h("section", {}, h("h3", {}, "Links"), h("ul", { class: "links" },
      above ? h("li", {}, "parent ", h("a", { href: href(above.id) }, above.text)) : null,
      event.node_id ? h("li", {}, "node ", h("a", { href: nodeHref(event.node_id) }, event.node_id)) : null,
      trace && jaeger ? h("li", {}, h("a", { href: jaeger + "/trace/" + encodeURIComponent(trace) + (spanId ? "?uiFind=" + encodeURIComponent(spanId) : ""), target: "_blank", rel: "noreferrer noopener" }, "this span in Jaeger ↗")) : null),
    below.length ? folded(below.length + (below.length === 1 ? " child" : " children"), () => h("ul", { class: "links" },
      below.slice(0, 200).map((child) => h("li", { class: child.bad ? "bad" : null }, h("a", { href: href(child.id) }, child.text))),
      below.length > 200 ? h("li", { class: "dim" }, below.length - 200 + " more") : null), { open: below.length <= 12 }) : null),
    h("section", {}, h("h3", {}, "Ids"), h("table", { class: "pairs ids" }, h("tbody", {},
      [["event", event.id], ["run", event.run_id], ["node", event.node_id], ["step", event.step_id], ["parent", event.parent_event_id], ["trace", trace], ["span", spanId]]
        .filter(([, id]) => id).map(([name, id]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, h("code", {}, id), copyButton(id, name + " id"))))))),
    spans.length ? spans.map((span, index) => [
      folded(index ? "Attributes of " + span.name : "Span attributes", () => (isObject(span.attributes) ? tableBlock(span.attributes) : h("p", { class: "dim" }, "none"))),
      folded("Span as recorded" + (index ? " · " + span.name : ""), () => jsonTree(span))])
      : isObject(otel.attributes) ? folded("Span attributes", () => tableBlock(otel.attributes)) : null,
    folded("Row as stored", () => jsonTree(event)));
}

// A line as the API gives it, with the page's names.
function fromRow(line) {
  return { id: line.id, type: line.event_type, subtype: line.event_subtype, agent: line.agent_name, title: line.title, model: line.model, status: line.status };
}

function lineLink(event) {
  const kind = kindOf(event);
  const who = kind === "message" || kind === "handoff" ? null : event.agent;
  return { id: event.id, text: [KINDS[kind] || kind, who, event.title || event.model].filter(Boolean).join(" ") || shortId(event.id), bad: event.status === "failed" };
}

function number(value) {
  return typeof value === "number" ? count(value) : null;
}

function plain(value) {
  return value === undefined || value === null ? null : typeof value === "object" ? JSON.stringify(value) : String(value);
}
