/* The camera over a pattern: which tokens are in sight, and how many pixels a token has. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const LEFT = 92;
  const TOP = 64;
  parts.MARGINS = { LEFT, TOP };
  const LARGEST = 72;
  /** As many tokens are shown at most where tokens name the axes. */
  const LABELLED = 256;

  class Camera {
    constructor(viewer) {
      this.viewer = viewer;
      this.meta = viewer.meta;
      this.size = { w: 400, h: 300 };
      /** Token in the upper left corner, and pixels a token. */
      this.q = this.k = 0;
      this.scale = 1;
      /** Whether everything is in sight, so that a new size keeps it so. */
      this.fitted = true;
      /** Whether tokens name the axes at any zoom. */
      this.labels = false;
    }
    /** Where the pattern is drawn: what the margins leave. */
    get plot() {
      return { x: LEFT, y: TOP, w: Math.max(this.size.w - LEFT - 10, 40), h: Math.max(this.size.h - TOP - 8, 40) };
    }
    get least() {
      const { w, h } = this.plot;
      const shown = this.labels ? Math.min(this.meta.length, LABELLED) : this.meta.length;
      return Math.min(w, h) / shown;
    }
    get most() {
      return Math.max(LARGEST, this.least);
    }
    /** Tokens in sight: [q0, k0, q1, k1]. */
    get box() {
      const { w, h } = this.plot;
      const end = (at) => Math.min(Math.ceil(at - 1e-6), this.meta.length);
      return [Math.floor(this.q + 1e-6), Math.floor(this.k + 1e-6), end(this.q + h / this.scale), end(this.k + w / this.scale)];
    }
    get level() {
      return parts.clamp(Math.ceil(-Math.log2(this.scale) - 0.3), 0, this.meta.levels - 1);
    }
    x(key) {
      return LEFT + (key - this.k) * this.scale;
    }
    y(query) {
      return TOP + (query - this.q) * this.scale;
    }

    resize(w, h) {
      this.size = { w, h };
      if (this.fitted) this.fit();
      else this.bound();
    }
    fit() {
      this.scale = this.least;
      this.q = this.k = 0;
      if (this.labels && this.meta.length > LABELLED) this.centre(this.viewer.store.query, this.viewer.store.query);
      else this.fitted = true;
    }
    centre(query, key) {
      const { w, h } = this.plot;
      this.q = query + 0.5 - h / this.scale / 2;
      this.k = key + 0.5 - w / this.scale / 2;
      this.bound();
    }
    /** Show a box of tokens, or everything. */
    show(box) {
      if (!box) {
        this.fit();
        return;
      }
      if (String(box) === String(this.box)) return;
      const { w, h } = this.plot;
      this.scale = Math.min(w / (box[3] - box[1]), h / (box[2] - box[0]));
      [this.q, this.k] = [box[0], box[1]];
      this.bound();
    }
    bound() {
      const { w, h } = this.plot;
      const { length } = this.meta;
      this.scale = parts.clamp(this.scale, this.least, this.most);
      this.q = parts.clamp(this.q, 0, Math.max(0, length - h / this.scale));
      this.k = parts.clamp(this.k, 0, Math.max(0, length - w / this.scale));
      this.fitted = this.scale <= this.least * 1.001 && !(this.labels && length > LABELLED);
    }
    zoom(factor, x, y) {
      const { plot } = this;
      const [px, py] = [x ?? plot.x + Math.min(plot.w, this.meta.length * this.scale) / 2, y ?? plot.y + Math.min(plot.h, this.meta.length * this.scale) / 2];
      const [key, query] = [this.k + (px - LEFT) / this.scale, this.q + (py - TOP) / this.scale];
      this.scale = parts.clamp(this.scale * factor, this.least, this.most);
      this.k = key - (px - LEFT) / this.scale;
      this.q = query - (py - TOP) / this.scale;
      this.bound();
    }
    pan(dx, dy) {
      this.k -= dx / this.scale;
      this.q -= dy / this.scale;
      this.bound();
    }
  }
  parts.Camera = Camera;
})();
