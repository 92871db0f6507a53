/* The heat-map of a head at any length: tiles under the camera, what no query sees, numbers, the chosen pair. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { LEFT, TOP } = parts.MARGINS;
  const NUMBERED = 34;

  class Heat extends parts.Camera {
    constructor(panel) {
      super(panel.viewer);
      this.panel = panel;
      this.tiles = panel.tiles;
      this.top = 1;
      this.drawn = [];
      this.settle = parts.later(() => this.panel.draw(), 120);
    }
    /** Tiles of a level in sight, those nearest to the middle first. */
    inSight(level) {
      const { layer, head, reduce } = this.viewer.store.state;
      const span = this.meta.tile * 2 ** level;
      const [q0, k0, q1, k1] = this.box;
      const found = [];
      for (let row = Math.floor(q0 / span); row * span < q1; row++)
        for (let col = Math.floor(k0 / span); col * span < k1; col++) {
          const spec = { layer, head, level, row, col, reduce };
          if (this.tiles.seen(spec)) found.push(spec);
        }
      const far = ({ row, col }) => Math.hypot((row + 0.5) * span - (q0 + q1) / 2, (col + 0.5) * span - (k0 + k1) / 2);
      return found.sort((a, b) => far(a) - far(b));
    }
    overview() {
      const { layer, head, reduce } = this.viewer.store.state;
      return { layer, head, reduce, level: this.meta.levels - 1, row: 0, col: 0 };
    }
    need() {
      const exact = this.inSight(this.level);
      this.tiles.want(this.level < this.meta.levels - 1 ? [this.overview(), ...exact] : exact);
      this.range(exact);
    }
    /** End of the colour ramp: the largest weight in sight, rounded up, once the map rests. */
    range(specs) {
      let most = 0;
      const [q0, k0, q1, k1] = this.box;
      for (const spec of specs) {
        const tile = this.tiles.get(spec);
        if (!tile) {
          if (this.top && this.viewer.moving) return;
          continue;
        }
        const side = 2 ** spec.level;
        const [r, c] = [spec.row * this.meta.tile, spec.col * this.meta.tile];
        most = Math.max(most, this.tiles.largest(tile, q0 / side - r, k0 / side - c, q1 / side - r, k1 / side - c));
      }
      const top = Math.min(parts.niceTop(most), 1);
      if (!most || top === this.top) return;
      if (this.viewer.moving) this.settle();
      else this.top = top;
    }

    /** What is drawn of one tile: itself, or the part of a coarser one that covers it. */
    cover(spec) {
      for (let up = 0; spec.level + up < this.meta.levels; up++) {
        const [row, col] = [spec.row >> up, spec.col >> up];
        const tile = this.tiles.get({ ...spec, level: spec.level + up, row, col });
        if (!tile) continue;
        const side = this.meta.tile / 2 ** up;
        const [r, c] = [(spec.row - (row << up)) * side, (spec.col - (col << up)) * side];
        return { tile, up, r, c, rows: Math.min(side, tile.rows - r), cols: Math.min(side, tile.cols - c) };
      }
      return null;
    }

    paint(pen) {
      const { plot } = this;
      const { theme } = this.viewer;
      const { length } = this.meta;
      const [right, bottom] = [Math.min(this.x(length), plot.x + plot.w), Math.min(this.y(length), plot.y + plot.h)];
      pen.clipped(plot.x, plot.y, right - plot.x, bottom - plot.y, () => {
        // What is not known yet is grey, which is no colour of the ramp.
        pen.rect(plot.x, plot.y, right - plot.x, bottom - plot.y, theme.band);
        this.paintTiles(pen);
        this.paintUnseen(pen);
        this.paintCells(pen);
      });
      pen.rect(plot.x - 0.5, plot.y - 0.5, right - plot.x + 1, bottom - plot.y + 1, null, { stroke: theme.line });
      parts.paintCorner(pen);
      parts.paintRegions(this, pen, right, bottom);
      parts.paintAxis(this, pen, "key", plot.x, right);
      parts.paintAxis(this, pen, "query", plot.y, bottom);
    }
    paintTiles(pen) {
      const { scale: style } = this.viewer.store.state;
      const { theme } = this.viewer;
      this.drawn = [];
      for (const spec of this.inSight(this.level)) {
        const found = this.cover(spec);
        if (!found) continue;
        const { tile, up, r, c, rows, cols } = found;
        const size = this.scale * 2 ** (spec.level + up);
        const span = this.meta.tile * 2 ** spec.level;
        const image = this.tiles.picture(tile, style, this.top, theme);
        pen.image(image, c, r, cols, rows, this.x(spec.col * span), this.y(spec.row * span), cols * size, rows * size);
        this.drawn.push({ level: spec.level + up, row: tile.spec.row, col: tile.spec.col, exact: up === 0 });
      }
    }
    /** Where no query can look: after itself, or before its window. */
    paintUnseen(pen) {
      const { layer } = this.viewer.store.state;
      if (!this.meta.causal[layer]) return;
      const [q0, k0, q1, k1] = this.box;
      const fine = this.scale >= 2;
      const stairs = (shift) => {
        const points = [];
        const step = fine ? 1 : Math.max(1, q1 - q0);
        for (let q = q0; q <= q1; q += step) {
          points.push([this.x(q + shift), this.y(q)]);
          if (fine && q < q1) points.push([this.x(q + shift), this.y(q + 1)]);
        }
        return points;
      };
      if (k1 > q0) pen.hatched([...stairs(1), [this.x(Math.max(k1, q1) + 1), this.y(q1)], [this.x(Math.max(k1, q1) + 1), this.y(q0)]]);
      const window = this.meta.window[layer];
      if (window && window < q1 - k0) pen.hatched([...stairs(1 - window), [this.x(k0 - 1), this.y(q1)], [this.x(k0 - 1), this.y(q0)]]);
    }
    paintCells(pen) {
      if (this.scale < 16) return;
      const { theme } = this.viewer;
      const [q0, k0, q1, k1] = this.box;
      for (let q = q0 + 1; q < q1; q++) pen.line([[this.x(k0), this.y(q)], [this.x(k1), this.y(q)]], theme.panel, { width: 1 });
      for (let k = k0 + 1; k < k1; k++) pen.line([[this.x(k), this.y(q0)], [this.x(k), this.y(q1)]], theme.panel, { width: 1 });
      if (this.scale < NUMBERED) return;
      const share = parts.transfer(this.viewer.store.state.scale, this.top);
      for (let q = q0; q < q1; q++)
        for (let k = k0; k < k1; k++) {
          const at = this.look(q, k);
          if (!at || at.side !== 1 || !at.visible) continue;
          const words = at.value >= 0.0995 ? at.value.toFixed(2) : at.value >= 0.0005 ? at.value.toFixed(3).slice(1) : at.value ? "·" : "0";
          pen.text(this.x(k + 0.5), this.y(q + 0.5), words, { fill: theme.onRamp(share(at.value)), size: this.scale > 46 ? 11 : 9.5, anchor: "middle" });
        }
    }

    /** Chosen pair and pair under the pointer, on a canvas of their own. */
    paintOver(pen) {
      const { theme, store, hover } = this.viewer;
      const { plot } = this;
      const [right, bottom] = [Math.min(this.x(this.meta.length), plot.x + plot.w), Math.min(this.y(this.meta.length), plot.y + plot.h)];
      const wide = Math.max(this.scale, 1);
      pen.clipped(plot.x, plot.y, right - plot.x, bottom - plot.y, () => {
        const across = (query, colour, opacity, dash) => this.stripe(pen, this.y(query), wide, (y) => [[plot.x, y], [right, y]], colour, opacity, dash);
        const down = (key, colour, opacity, dash) => this.stripe(pen, this.x(key), wide, (x) => [[x, plot.y], [x, bottom]], colour, opacity, dash);
        across(store.query, theme.accent, 0.9);
        if (this.viewer.key !== null) down(this.viewer.key, theme.warm, 0.9);
        if (hover.query !== null) across(hover.query, theme.ink, 0.65, [3, 3]);
        if (hover.key !== null) down(hover.key, theme.ink, 0.65, [3, 3]);
      });
    }
    /** A line through the middle of thin cells, two along the edges of wide ones. */
    stripe(pen, at, wide, line, colour, opacity, dash) {
      if (wide < 5) pen.line(line(at + wide / 2), colour, { opacity, dash, width: 1 });
      else for (const edge of [at, at + wide]) pen.line(line(edge), colour, { opacity, dash, width: 1 });
    }

    /** Pair of tokens, or one token of an axis, at a place of the canvas. */
    pick(x, y) {
      const { plot } = this;
      if (x >= plot.x + plot.w || y >= plot.y + plot.h) return null;
      const [query, key] = [Math.floor(this.q + (y - TOP) / this.scale), Math.floor(this.k + (x - LEFT) / this.scale)];
      if (query >= this.meta.length || key >= this.meta.length) return null;
      // Beside the map: a token of one axis alone.
      if (x < plot.x) return y < plot.y ? null : { query, key: null };
      return y < plot.y ? { query: null, key } : { query, key };
    }
    /** What is drawn at a pair: the value, and the block of tokens it speaks for. */
    look(query, key) {
      const { layer, head, reduce } = this.viewer.store.state;
      const visible = this.viewer.sees(layer, query, key);
      for (let level = this.level; level < this.meta.levels; level++) {
        const side = 2 ** level;
        const [r, c] = [Math.floor(query / side), Math.floor(key / side)];
        const spec = { layer, head, reduce, level, row: Math.floor(r / this.meta.tile), col: Math.floor(c / this.meta.tile) };
        if (!this.tiles.seen(spec)) return { value: 0, side, visible, query, key };
        const tile = this.tiles.cache.peek(parts.Tiles.key(spec));
        if (tile) return { value: tile.data[(r - spec.row * this.meta.tile) * tile.cols + c - spec.col * this.meta.tile], side, visible, query, key };
      }
      return null;
    }

    /** The pair with the largest weight in the block that is drawn at a pair; the pair itself when it is a single cell. */
    async strongest({ query, key }) {
      const { layer, head, reduce } = this.viewer.store.state;
      const { tile, length } = this.meta;
      const side = 2 ** this.level;
      if (side === 1 || side > tile || !this.viewer.sees(layer, Math.min(Math.floor(query / side) * side + side - 1, length - 1), Math.floor(key / side) * side)) return { query, key };
      const spec = { layer, head, reduce, level: 0, row: Math.floor(query / tile), col: Math.floor(key / tile) };
      const found = this.tiles.get(spec) || (await this.tiles.ahead(spec));
      if (!found) return { query, key };
      const [r0, c0] = [Math.floor((query % tile) / side) * side, Math.floor((key % tile) / side) * side];
      let best = -1;
      let at = { query, key };
      for (let r = r0; r < Math.min(r0 + side, found.rows); r++)
        for (let c = c0; c < Math.min(c0 + side, found.cols); c++) {
          const value = found.data[r * found.cols + c];
          if (value > best) [best, at] = [value, { query: spec.row * tile + r, key: spec.col * tile + c }];
        }
      return at;
    }

    /** The cells in sight at the level that is drawn. */
    table() {
      const side = 2 ** this.level;
      const [q0, k0, q1, k1] = this.box;
      const rows = [["query", "key", "query_token", "key_token", side === 1 ? "weight" : `${this.viewer.store.state.reduce}_of_${side}x${side}`]];
      for (let q = Math.floor(q0 / side) * side; q < q1; q += side)
        for (let k = Math.floor(k0 / side) * side; k < k1; k += side) {
          const at = this.look(q, k);
          const any = this.viewer.sees(this.viewer.store.state.layer, Math.min(q + side - 1, this.meta.length - 1), k);
          if (at && at.side === side && any) rows.push([q, k, this.meta.tokens[q], this.meta.tokens[k], at.value]);
        }
      return rows;
    }
    debug() {
      return { level: this.level, drawn: this.drawn, box: this.box, scale: this.scale, camera: { q: this.q, k: this.k }, plot: this.plot, top: this.top };
    }
  }
  parts.Heat = Heat;
})();
