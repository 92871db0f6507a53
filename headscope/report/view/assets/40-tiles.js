/* Tiles of the pyramid: kept by least recent use, fetched few at a time, dropped when nobody waits for them any more. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const KEPT = 160;
  const AT_ONCE = 4;
  const BLOCK = 16;

  /** Largest value of every 16 × 16 cells, so that the largest in sight is found without looking at every cell. */
  function blocks(tile) {
    const across = Math.ceil(tile.cols / BLOCK);
    const most = new Float32Array(across * Math.ceil(tile.rows / BLOCK));
    for (let r = 0, i = 0; r < tile.rows; r++) {
      const base = Math.floor(r / BLOCK) * across;
      for (let c = 0; c < tile.cols; c++, i++) {
        const at = base + ((c / BLOCK) | 0);
        if (tile.data[i] > most[at]) most[at] = tile.data[i];
      }
    }
    return { most, across };
  }

  class Tiles {
    constructor(source, meta, changed) {
      Object.assign(this, { source, meta, changed });
      this.cache = new parts.Cache(KEPT);
      this.wanted = [];
      this.flying = new Map();
      this.failed = new Map();
      this.stop = new AbortController();
    }
    /** Name of a tile. At level 0 cells are single weights: mean and maximum are one. */
    static key({ layer, head, reduce, level, row, col }) {
      return `${layer}.${head}.${level ? reduce : ""}.${level}.${row}.${col}`;
    }
    get(spec) {
      return this.cache.get(Tiles.key(spec));
    }
    /** Whether a tile holds anything that a query can see. */
    seen({ layer, level, row, col }) {
      const span = this.meta.tile * 2 ** level;
      if (!this.meta.causal[layer]) return true;
      if (col * span > Math.min((row + 1) * span, this.meta.length) - 1) return false;
      const window = this.meta.window[layer];
      return !window || row * span - ((col + 1) * span - 1) < window;
    }
    /** Say what is needed now, most urgent first; what is not in the list any more is dropped. */
    want(specs) {
      this.wanted = specs.filter((spec) => !this.cache.peek(Tiles.key(spec)));
      const keys = new Set(this.wanted.map(Tiles.key));
      for (const [key, stop] of this.flying) if (!keys.has(key)) {
        stop.abort();
        this.flying.delete(key);
      }
      this.next();
    }
    next() {
      for (const spec of this.wanted) {
        if (this.flying.size >= AT_ONCE) return;
        const key = Tiles.key(spec);
        if (!this.flying.has(key) && !this.failed.has(key) && !this.cache.peek(key)) this.fetch(key, spec);
      }
    }
    async fetch(key, spec) {
      const stop = new AbortController();
      this.flying.set(key, stop);
      try {
        const got = await this.source.tile(spec, stop.signal);
        const tile = { ...got, spec, painted: "" };
        Object.assign(tile, blocks(tile));
        this.cache.set(key, tile);
      } catch (error) {
        if (error.name !== "AbortError" && !stop.signal.aborted) this.failed.set(key, error);
      }
      if (this.flying.get(key) === stop) this.flying.delete(key);
      if (stop.signal.aborted) return;
      this.changed();
      this.next();
    }
    get pending() {
      return this.wanted.filter((spec) => !this.cache.peek(Tiles.key(spec)) && !this.failed.has(Tiles.key(spec))).length;
    }
    /** First error among the tiles that are wanted. */
    get error() {
      for (const spec of this.wanted) {
        const found = this.failed.get(Tiles.key(spec));
        if (found) return found;
      }
      return null;
    }
    retry() {
      this.failed.clear();
      this.next();
    }
    /** Fetch a tile that is not drawn now; null where it cannot be had: who draws it is told why. */
    async ahead(spec) {
      const key = Tiles.key(spec);
      if (this.cache.peek(key)) return this.cache.peek(key);
      if (!this.seen(spec)) return null;
      try {
        const got = await this.source.tile(spec, this.stop.signal);
        return this.cache.set(key, Object.assign({ ...got, spec, painted: "" }, blocks(got)));
      } catch {
        return null;
      }
    }
    /** Picture of a tile in the colours of now. */
    picture(tile, scale, top, theme) {
      const style = `${scale} ${top} ${theme.version}`;
      if (tile.painted !== style) {
        tile.canvas = parts.raster(tile.data, tile.rows, tile.cols, parts.transfer(scale, top), theme.ramp);
        tile.painted = style;
      }
      return tile.canvas;
    }
    /** Largest value among some cells of a tile, to the next 16. */
    largest(tile, r0, c0, r1, c1) {
      let most = 0;
      const [rows, cols] = [Math.ceil(Math.min(r1, tile.rows) / BLOCK), Math.ceil(Math.min(c1, tile.cols) / BLOCK)];
      for (let r = Math.floor(Math.max(r0, 0) / BLOCK); r < rows; r++)
        for (let c = Math.floor(Math.max(c0, 0) / BLOCK); c < cols; c++) most = Math.max(most, tile.most[r * tile.across + c]);
      return most;
    }
    destroy() {
      for (const stop of this.flying.values()) stop.abort();
      this.stop.abort();
      this.wanted = [];
      this.flying.clear();
      this.cache.clear();
    }
  }
  parts.Tiles = Tiles;
})();
