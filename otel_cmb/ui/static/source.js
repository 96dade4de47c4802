// Where the data comes from: the server that served the page, or the page itself when it was exported to a file.

// Integers beyond 2^53 (nanoseconds, ids) stay exact where the browser can tell how they were written.
export function parseExact(text) {
  return JSON.parse(text, (_key, value, context) => (
    typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context && /^-?\d+$/.test(context.source)
      ? BigInt(context.source) : value
  ));
}

export class SourceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class ServerSource {
  constructor(base) {
    this.base = base;
    this.live_view = true;
    this.tags = new Map();
  }

  // `null`: not modified since `tag`. Raises SourceError.
  async ask(path, { tag = null, signal = undefined } = {}) {
    let answer;
    try {
      answer = await fetch(this.base + path, { headers: tag ? { "If-None-Match": '"' + tag + '"' } : {}, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new SourceError("the server does not answer", 0);
    }
    if (answer.status === 304) return null;
    const text = await answer.text();
    let body = null;
    try { body = parseExact(text); } catch { /* not JSON: the text is the message */ }
    if (!answer.ok) throw new SourceError((body && body.error) || text.slice(0, 300) || answer.statusText, answer.status);
    return { body, tag: (answer.headers.get("etag") || "").replace(/^W\//, "").replaceAll('"', "") };
  }

  async get(path, signal) {
    return (await this.ask(path, { signal })).body;
  }

  info() { return this.get("/api/info"); }
  runs(query, tag) { return this.ask("/api/runs?" + query, { tag }); }
  runTotals(ids) { return this.get("/api/runs/totals?" + ids.map((id) => "id=" + encodeURIComponent(id)).join("&")); }
  live(run, since, after) {
    const query = after ? "?after=" + encodeURIComponent(after) : "";
    return this.ask("/api/runs/" + encodeURIComponent(run) + "/live" + query, { tag: since });
  }
  totals(run) { return this.get("/api/runs/" + encodeURIComponent(run) + "/totals"); }
  files(run) { return this.get("/api/runs/" + encodeURIComponent(run) + "/files"); }
  messages(run) { return this.get("/api/runs/" + encodeURIComponent(run) + "/messages"); }
  event(id, signal) { return this.get("/api/events/" + encodeURIComponent(id), signal); }
}

export class FileSource {
  constructor(documentOfFile) {
    this.live_view = false;
    this.page = documentOfFile;
    this.whole = this.read("data");
    this.chunks = new Map();
  }

  read(id) {
    return parseExact(this.page.getElementById(id).textContent);
  }

  get run_id() { return this.whole.live.run.id; }
  async info() { return this.whole.info; }
  async live(_run, since) {
    return since ? null : { body: { ...this.whole.live, token: "file", full: true, removed: [] }, tag: "file" };
  }
  async totals() { return this.whole.totals; }
  async files() { return { files: this.whole.files }; }
  async messages() { return { messages: this.whole.messages }; }

  // A conversation is in the file once; here its earlier messages come back into the call that had them.
  told(value) {
    const earlier = value && !Array.isArray(value) ? value.earlier : null;
    if (!earlier || typeof earlier.history !== "string" || !Array.isArray(value.messages)) return value;
    const { links, contents } = this.whole.histories, before = [];
    for (let at = earlier.history; at !== null; at = links[at][0]) {
      if (!Object.hasOwn(links, at) || before.length > earlier.messages) return value;
      before.unshift(contents[links[at][1]]);
    }
    if (before.length !== earlier.messages) return value;
    const { earlier: _gone, ...rest } = value;
    return { ...rest, messages: [...before, ...value.messages] };
  }

  // Payloads lie in pieces, each taken apart when one of its events is opened.
  async event(id) {
    const place = this.whole.places[id];
    if (place === undefined) throw new SourceError("this event is not in the file", 404);
    if (!this.chunks.has(place)) this.chunks.set(place, this.read("events-" + place));
    const { event, spans } = this.chunks.get(place)[id];
    return { event: { ...event, inputs: this.told(event.inputs), outputs: this.told(event.outputs) }, spans, parent: null, children: [] };
  }
}
