// A small highlighter: enough to read code by, never wrong enough to mislead. Text in, elements out.

import { h } from "./dom.js";

const LIMIT = 60000;
const words = (text) => new Set(text.split(" "));

const PYTHON = {
  rules: [
    ["c", /#[^\n]*/y],
    ["s", /[rbfuRBFU]{0,2}(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$))/y],
    ["s", /[rbfuRBFU]{0,2}(?:"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)/y],
    ["d", /@[A-Za-z_][\w.]*/y],
    ["n", /\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?j?)/y],
    ["w", /[A-Za-z_]\w*/y],
  ],
  keywords: words("False None True and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return try while with yield"),
  names: words("print len range list dict set tuple str int float bool open enumerate zip map filter sum min max sorted abs any all isinstance type super self cls Exception ValueError TypeError"),
};
const SHELL = {
  rules: [
    ["c", /#[^\n]*/y], ["s", /"(?:\\.|[^"\\])*"?|'[^']*'?/y], ["d", /\$(?:\{[^}\n]*\}|\w+|[#?@*!$])/y],
    ["n", /\b\d+\b/y], ["o", /--?[A-Za-z][\w-]*/y], ["w", /[A-Za-z_][\w-]*/y],
  ],
  keywords: words("if then else elif fi for while do done case esac in function return export local set"),
  names: words("echo cd ls cat grep sed awk pip python python3 curl wget mkdir rm cp mv chmod sudo apt apt-get git make npm"),
};
const SCRIPT = {
  rules: [
    ["c", /\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)/y], ["s", /"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*`?/y],
    ["n", /\b(?:0[xXbB][\da-fA-F_]+|\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?n?)/y], ["w", /[A-Za-z_$][\w$]*/y],
  ],
  keywords: words("async await break case catch class const continue default delete do else export extends finally for from function if import in instanceof let new of return static super switch this throw try typeof var void while yield true false null undefined int float double char bool void struct public private fn impl use mut pub match"),
  names: words("console Math JSON Object Array Promise Map Set String Number"),
};
const SQL = {
  rules: [["c", /--[^\n]*/y], ["s", /'(?:''|[^'])*'?/y], ["n", /\b\d+(?:\.\d+)?/y], ["w", /[A-Za-z_]\w*/y]],
  keywords: words("select from where and or not in is null as join left right inner outer on group by order having limit offset insert into values update set delete create table index view with union all distinct case when then else end"),
  names: new Set(), fold: true,
};
const JSON_TEXT = {
  rules: [["d", /"(?:\\.|[^"\\])*"(?=\s*:)/y], ["s", /"(?:\\.|[^"\\])*"?/y], ["n", /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y], ["w", /[a-z]+/y]],
  keywords: words("true false null"), names: new Set(),
};

const LANGUAGES = {
  python: PYTHON, py: PYTHON, python3: PYTHON, ipython: PYTHON, bash: SHELL, sh: SHELL, shell: SHELL, zsh: SHELL, console: SHELL,
  javascript: SCRIPT, js: SCRIPT, typescript: SCRIPT, ts: SCRIPT, java: SCRIPT, c: SCRIPT, cpp: SCRIPT, go: SCRIPT, rust: SCRIPT,
  sql: SQL, json: JSON_TEXT,
};

export function highlight(code, language) {
  const table = LANGUAGES[String(language || "").toLowerCase()];
  const fragment = document.createDocumentFragment();
  if (!table || code.length > LIMIT) {
    fragment.appendChild(document.createTextNode(code));
    return fragment;
  }
  let at = 0, plain = 0;
  const flush = (end) => { if (end > plain) fragment.appendChild(document.createTextNode(code.slice(plain, end))); };
  while (at < code.length) {
    const hit = take(table, code, at);
    if (hit === null) { at += 1; continue; }
    const [style, end] = hit;
    if (style) {
      flush(at);
      fragment.appendChild(h("span", { class: "h-" + style }, code.slice(at, end)));
      plain = end;
    }
    at = end;
  }
  flush(code.length);
  return fragment;
}

function take(table, code, at) {
  for (const [style, rule] of table.rules) {
    rule.lastIndex = at;
    const found = rule.exec(code);
    if (!found || found[0] === "") continue;
    const end = at + found[0].length;
    if (style !== "w") return [style, end];
    const word = table.fold ? found[0].toLowerCase() : found[0];
    if (table.keywords.has(word)) return ["k", end];
    return [table.names.has(word) ? "b" : code[end] === "(" ? "f" : null, end];
  }
  return null;
}
