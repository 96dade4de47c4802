// Elements. Everything that comes from a database goes through here as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "style") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
    else if (name === "data") for (const [key, item] of Object.entries(value)) element.dataset[key] = item;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(element, child);
    else if (child instanceof Node) element.appendChild(child);
    else if (child !== null && child !== undefined && child !== false) element.appendChild(document.createTextNode(String(child)));
  }
}

export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

export function put(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

export function later(wait, action) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), wait);
  };
}

export function copyButton(text, label) {
  const button = h("button", { class: "copy", type: "button", title: "Copy " + label, "aria-label": "Copy " + label }, copyIcon());
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const done = await copyText(text);
    put(button, done ? "✓" : "✗");
    setTimeout(() => { put(button, copyIcon()); }, 1200);
  });
  return button;
}

function copyIcon() {
  return s("svg", { width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" },
    s("path", { d: "M4.5 4.5h6v6h-6z M7.5 4.5v-3h-6v6h3", fill: "none", stroke: "currentColor", "stroke-width": 1.2 }));
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without HTTPS, away from localhost, or in a file: the old way.
    const area = h("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    document.body.appendChild(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
