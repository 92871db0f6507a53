/* What the viewer shows, as plain data: clamped, written to and read from an address, told to whoever listens. */
(() => {
  "use strict";
  const { parts } = Headscope;

  const MODES = ["auto", "lines", "tokens", "map"];
  const SCALES = ["linear", "sqrt", "log"];
  const REDUCES = ["max", "mean"];
  const SIDES = ["row", "column"];
  Object.assign(parts, { MODES, SCALES, REDUCES });

  /** Everything absent is this. A `query` of null is the last token, a `key` of null the one that the query attends to most. */
  const DEFAULTS = Object.freeze({
    layer: 0, head: 0, stat: null, query: null, key: null, box: null,
    reduce: "max", scale: "sqrt", mode: "auto", thumbs: false, side: "row", wrote: false,
  });
  parts.DEFAULTS = DEFAULTS;

  const whole = (value) => (value === null || value === "" || !Number.isFinite(Number(value)) ? null : Math.round(Number(value)));
  const among = (options, value, otherwise) => (options.includes(value) ? value : otherwise);

  /** Nearest layer that has heads. */
  function layerOf(value, heads) {
    const asked = parts.clamp(whole(value) ?? 0, 0, heads.length - 1);
    for (let far = 0; far < heads.length; far++) {
      if (heads[asked + far]) return asked + far;
      if (heads[asked - far]) return asked - far;
    }
    return asked;
  }

  function boxOf(box, length) {
    if (!Array.isArray(box) || box.length !== 4) return null;
    const ends = box.map(whole);
    if (ends.includes(null)) return null;
    const [q0, k0, q1, k1] = ends.map((end) => parts.clamp(end, 0, length));
    if (q1 <= q0 || k1 <= k0) return null;
    return q1 - q0 >= length && k1 - k0 >= length ? null : [q0, k0, q1, k1];
  }

  /**
   * Bring a state into the range of a run: what is unknown becomes the default, what is out of range the nearest that is not.
   * @param {Object} state
   * @param {Object} meta - what `source.meta()` says
   */
  parts.clampState = (state, meta) => {
    const layer = layerOf(state.layer, meta.heads);
    const position = (value) => {
      const asked = whole(value ?? null);
      return asked === null ? null : parts.clamp(asked, 0, meta.length - 1);
    };
    const known = typeof state.stat === "string" && (meta.stats.some((one) => one.name === state.stat) || state.stat.includes(":"));
    return {
      layer,
      head: parts.clamp(whole(state.head ?? null) ?? 0, 0, Math.max(meta.heads[layer] - 1, 0)),
      stat: known ? state.stat : meta.stats.length ? meta.stats[0].name : null,
      query: position(state.query) ?? meta.length - 1,
      key: position(state.key),
      box: boxOf(state.box, meta.length),
      reduce: among(REDUCES, state.reduce, DEFAULTS.reduce),
      scale: among(SCALES, state.scale, DEFAULTS.scale),
      mode: among(MODES, state.mode, DEFAULTS.mode),
      thumbs: state.thumbs === true,
      side: among(SIDES, state.side, DEFAULTS.side),
      wrote: state.wrote === true,
    };
  };

  /**
   * Write a state as the query of an address, defaults left out: `head=18.6&q=511&k=20&box=0.0.512.512`.
   * @param {Object} state
   * @returns {string}
   */
  Headscope.toQuery = (state) => {
    const full = { ...DEFAULTS, ...state };
    const pairs = [["head", `${full.layer}.${full.head}`]];
    const add = (name, value) => pairs.push([name, encodeURIComponent(value).replaceAll("%3A", ":").replaceAll("%2F", "/")]);
    if (full.stat) add("stat", full.stat);
    if (full.query !== null) add("q", full.query);
    if (full.key !== null) add("k", full.key);
    if (full.box) add("box", full.box.join("."));
    for (const name of ["reduce", "scale", "mode", "side"]) if (full[name] !== DEFAULTS[name]) add(name, full[name]);
    for (const name of ["thumbs", "wrote"]) if (full[name]) add(name, 1);
    return pairs.map((pair) => pair.join("=")).join("&");
  };

  /**
   * Read what `toQuery` wrote; names it does not know are left alone, what is absent has its default.
   * @param {string} text - with or without the question mark
   */
  Headscope.fromQuery = (text) => {
    const given = new URLSearchParams(text);
    const state = { ...DEFAULTS };
    const head = /^(\d+)\.(\d+)$/.exec(given.get("head") || "");
    if (head) [state.layer, state.head] = [Number(head[1]), Number(head[2])];
    if (given.get("stat")) state.stat = given.get("stat");
    for (const [name, short] of [["query", "q"], ["key", "k"]]) if (/^\d+$/.test(given.get(short) || "")) state[name] = Number(given.get(short));
    if (/^\d+(\.\d+){3}$/.test(given.get("box") || "")) state.box = given.get("box").split(".").map(Number);
    state.reduce = among(REDUCES, given.get("reduce"), state.reduce);
    state.scale = among(SCALES, given.get("scale"), state.scale);
    state.mode = among(MODES, given.get("mode"), state.mode);
    state.side = among(SIDES, given.get("side"), state.side);
    state.thumbs = given.get("thumbs") === "1";
    state.wrote = given.get("wrote") === "1";
    return state;
  };

  /** The state of one viewer. `watch` is told at once what changed; `onState` a moment later, once for a whole gesture's frame. */
  class Store {
    constructor(meta, initial, onState) {
      this.meta = meta;
      this.state = parts.clampState({ ...DEFAULTS, ...initial }, meta);
      this.watchers = new Set();
      this.tell = parts.later(() => onState && onState(this.get()), 60);
    }
    get() {
      return { ...this.state, box: this.state.box ? [...this.state.box] : null };
    }
    set(partial) {
      const next = parts.clampState({ ...this.state, ...partial }, this.meta);
      const changed = new Set(Object.keys(next).filter((name) => String(next[name]) !== String(this.state[name])));
      if (!changed.size) return;
      this.state = next;
      for (const watcher of this.watchers) watcher(changed, next);
      this.tell();
    }
    watch(watcher) {
      this.watchers.add(watcher);
    }
    /** The query whose row is shown: of a generated token the row that wrote it, where that is asked for. */
    get query() {
      const { query, wrote } = this.state;
      return wrote && query >= this.meta.prompt_length && query > 0 ? query - 1 : query;
    }
  }
  parts.Store = Store;

  /** Tokens under the pointer, wherever it is: a query, a key, or both. */
  class Hover {
    constructor() {
      this.query = this.key = null;
      this.watchers = new Set();
    }
    set(query, key, from) {
      if (query === this.query && key === this.key) return;
      this.query = query;
      this.key = key;
      for (const watcher of this.watchers) watcher(from);
    }
    clear(from) {
      this.set(null, null, from);
    }
    watch(watcher) {
      this.watchers.add(watcher);
    }
  }
  parts.Hover = Hover;
})();
