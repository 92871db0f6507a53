/* Where numbers come from: over HTTP, and a memory in front of any source. */
(() => {
  "use strict";
  const { parts } = Headscope;

  async function answer(url, signal) {
    let got;
    try {
      got = await fetch(url, { signal, credentials: "same-origin" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running? Start it again, then retry.");
    }
    if (got.ok) return got;
    let told = null;
    try {
      told = (await got.json()).error;
    } catch {
      /* not JSON: the status has to do */
    }
    throw Object.assign(new Error(told || `The server answered ${got.status} ${got.statusText}.`), { status: got.status });
  }

  async function floats(url, signal) {
    const got = await answer(url, signal);
    const shape = (got.headers.get("X-Shape") || "").split(",").map(Number);
    const bytes = await got.arrayBuffer();
    return { shape, data: new Float32Array(bytes) };
  }

  /**
   * A source that asks a server.
   * @param {string} base - address of a run, such as "/api/run/0f3a"
   */
  Headscope.http = (base) => {
    const at = (...path) => [base.replace(/\/$/, ""), ...path.map((one) => encodeURIComponent(one).replaceAll("%3A", ":").replaceAll("%2F", "/"))].join("/");
    return {
      meta: async (signal) => (await answer(at("meta"), signal)).json(),
      stat: async (name, signal) => (await floats(at("stat", name), signal)).data,
      thumbs: async (layer, signal) => (await floats(at("thumbs", layer), signal)).data,
      tile: async ({ layer, head, level, row, col, reduce }, signal) => {
        const { shape, data } = await floats(`${at("tile", layer, head, level, row, col)}?reduce=${reduce}`, signal);
        return { rows: shape[0], cols: shape[1], data };
      },
      row: async (layer, head, query, signal) => (await floats(at("row", layer, head, query), signal)).data,
      column: async (layer, head, key, signal) => (await floats(at("column", layer, head, key), signal)).data,
      neuron: async (layer, head, query, key, signal) => (await answer(at("neuron", layer, head, query, key), signal)).json(),
    };
  };

  /** A memory in front of a source: one request for what is asked several times, failures are not kept. */
  class Data {
    constructor(source) {
      this.source = source;
      this.small = new parts.Cache(400);
      this.rows = new parts.Cache(240);
      this.stop = new AbortController();
    }
    keep(cache, key, make) {
      const found = cache.get(key);
      if (found) return found.promise;
      const entry = { value: undefined };
      entry.promise = Promise.resolve(make()).then(
        (value) => (entry.value = value),
        (error) => {
          if (cache.peek(key) === entry) cache.delete(key);
          throw error;
        },
      );
      cache.set(key, entry);
      return entry.promise;
    }
    meta() {
      return this.source.meta(this.stop.signal);
    }
    stat(name) {
      return this.keep(this.small, `stat ${name}`, () => this.source.stat(name, this.stop.signal));
    }
    thumbs(layer) {
      return this.keep(this.small, `thumbs ${layer}`, () => this.source.thumbs(layer, this.stop.signal));
    }
    row(layer, head, query) {
      return this.keep(this.rows, `row ${layer} ${head} ${query}`, () => this.source.row(layer, head, query, this.stop.signal));
    }
    column(layer, head, key) {
      return this.keep(this.rows, `column ${layer} ${head} ${key}`, () => this.source.column(layer, head, key, this.stop.signal));
    }
    neuron(layer, head, query, key) {
      return this.keep(this.small, `neuron ${layer} ${head} ${query} ${key}`, () => this.source.neuron(layer, head, query, key, this.stop.signal));
    }
    /** The row if it is already here. */
    rowNow(layer, head, query) {
      const found = this.rows.peek(`row ${layer} ${head} ${query}`);
      return found ? found.value : undefined;
    }
    destroy() {
      this.stop.abort();
      this.rows.clear();
      this.small.clear();
    }
  }
  parts.Data = Data;

  /** Position of the largest value; the first of equals. */
  parts.largest = (values) => {
    let best = 0;
    for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
    return best;
  };

  /** Positions of the `n` largest values, largest first; zeros are not among them. */
  parts.top = (values, n) => {
    const best = [];
    for (let i = 0; i < values.length; i++) {
      const v = values[i];
      if (!(v > 0) || (best.length === n && v <= values[best[n - 1]])) continue;
      let at = best.length === n ? n - 1 : best.length;
      while (at > 0 && values[best[at - 1]] < v) at--;
      best.splice(at, 0, i);
      if (best.length > n) best.pop();
    }
    return best;
  };
})();
