/* Lines between two columns of tokens: queries at the left, keys at the right, opacity by weight. For short texts and windows of long ones. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const LONGEST = 256;
  const WINDOW = 128;
  const ROW = 17;
  const TOP = 26;
  const FAINT = 0.004;

  class Lines {
    constructor(panel) {
      this.panel = panel;
      this.viewer = panel.viewer;
      this.meta = this.viewer.meta;
      this.tiles = panel.tiles;
      this.size = { w: 400, h: 300 };
      this.drawn = [];
      this.stretches = {};
    }
    resize(w, h) {
      this.size = { w, h };
    }
    /** Tokens shown: all of a short text, else a stretch about the query and one about the key. */
    get box() {
      const { length } = this.meta;
      if (length <= LONGEST) return [0, 0, length, length];
      const { box } = this.viewer.store.state;
      // A stretch stays where it is while its token is inside: what is clicked does not jump away.
      const about = (side, middle, from, to) => {
        if (to - from <= WINDOW) return [from, to];
        const kept = this.stretches[side];
        const stays = kept !== undefined && middle >= kept && middle < kept + WINDOW && kept >= from && kept + WINDOW <= to;
        const start = stays ? kept : parts.clamp(Math.round(middle - WINDOW / 2), from, to - WINDOW);
        this.stretches[side] = start;
        return [start, start + WINDOW];
      };
      const { query } = this.viewer.store;
      const key = this.viewer.store.state.key ?? query;
      const [q0, q1] = about("query", query, ...(box ? [box[0], box[2]] : [0, length]));
      const [k0, k1] = about("key", key, ...(box ? [box[1], box[3]] : [0, length]));
      return [q0, k0, q1, k1];
    }
    get height() {
      const [q0, k0, q1, k1] = this.box;
      return TOP + Math.max(q1 - q0, k1 - k0) * this.rowHeight + 8;
    }
    get rowHeight() {
      const [q0, k0, q1, k1] = this.box;
      return parts.clamp((this.size.h - TOP - 8) / Math.max(q1 - q0, k1 - k0), 13, ROW + 5);
    }
    get columns() {
      const side = parts.clamp(this.size.w * 0.28, 90, 190);
      return { left: side, right: this.size.w - side };
    }
    specs() {
      const { layer, head } = this.viewer.store.state;
      const [q0, k0, q1, k1] = this.box;
      const { tile } = this.meta;
      const found = [];
      for (let row = Math.floor(q0 / tile); row * tile < q1; row++)
        for (let col = Math.floor(k0 / tile); col * tile < k1; col++) {
          const spec = { layer, head, level: 0, row, col, reduce: this.viewer.store.state.reduce };
          if (this.tiles.seen(spec)) found.push(spec);
        }
      return found;
    }
    need() {
      this.tiles.want(this.specs());
    }
    weight(query, key) {
      const { layer, head, reduce } = this.viewer.store.state;
      const { tile } = this.meta;
      const [row, col] = [Math.floor(query / tile), Math.floor(key / tile)];
      const found = this.tiles.cache.peek(parts.Tiles.key({ layer, head, reduce, level: 0, row, col }));
      return found ? found.data[(query - row * tile) * found.cols + key - col * tile] : 0;
    }
    y(index, start) {
      return TOP + (index - start + 0.5) * this.rowHeight - this.panel.scrolled;
    }

    paint(pen) {
      const { theme, store, hover } = this.viewer;
      const { left, right } = this.columns;
      const [q0, k0, q1, k1] = this.box;
      const share = parts.transfer(store.state.scale, 1);
      const one = { query: hover.query, key: hover.key };
      const alone = one.query !== null || one.key !== null;
      const seen = (y) => y > -20 && y < this.size.h + 20;
      this.drawn = [];
      const line = (q, k, weight, colour, strength) => {
        const [a, b] = [this.y(q, q0), this.y(k, k0)];
        if ((a < 0 && b < 0) || (a > this.size.h && b > this.size.h)) return;
        pen.curve(left + 6, a, right - 6, b, colour, { opacity: Math.min(1, share(weight) * strength), width: 1 + 1.5 * weight });
        this.drawn.push([q, k]);
      };
      pen.clipped(0, TOP - 8, this.size.w, this.size.h - TOP + 8, () => {
        for (let q = q0; q < q1; q++) {
          for (let k = k0; k < k1; k++) {
            const weight = this.weight(q, k);
            const kept = !alone || (one.query !== null && one.key !== null ? q === one.query && k === one.key : q === one.query || k === one.key);
            if (weight < FAINT || !kept) continue;
            line(q, k, weight, theme.accent, alone || q === store.query ? 1 : 0.4);
          }
        }
        for (let q = q0; q < q1; q++) if (seen(this.y(q, q0))) this.token(pen, q, this.y(q, q0), "query", alone);
        for (let k = k0; k < k1; k++) if (seen(this.y(k, k0))) this.token(pen, k, this.y(k, k0), "key", alone);
      });
      pen.rect(0, 0, this.size.w, TOP - 8, theme.panel);
      pen.text(left, 9, "query", { fill: theme.soft, size: 10, anchor: "end" });
      pen.text(right, 9, "key", { fill: theme.soft, size: 10 });
    }
    token(pen, i, y, side, alone) {
      const { theme, store, hover } = this.viewer;
      const { left, right } = this.columns;
      const h = this.rowHeight;
      const query = side === "query";
      const other = query ? hover.key : hover.query;
      const self = (query ? hover.query : hover.key) === i;
      const chosen = (query ? store.query : this.viewer.key) === i;
      let weight = 0;
      if (other !== null) weight = query ? this.weight(i, other) : this.weight(other, i);
      else if (!alone && !query) weight = this.weight(store.query, i);
      const share = parts.transfer(store.state.scale, 1)(weight);
      const x = query ? 0 : right;
      const wide = query ? left : this.size.w - right;
      if (share > 0.01) pen.rect(x, y - h / 2 + 0.5, wide, h - 1, theme.heat, { opacity: share });
      if (self) pen.rect(x + 0.5, y - h / 2 + 0.5, wide - 1, h - 1, null, { stroke: theme.ink });
      const fill = chosen && share < 0.4 ? (query ? theme.accent : theme.warm) : theme.ink;
      const words = parts.label(this.meta.tokens[i], Math.floor((wide - 44) / 6.5));
      const bar = query ? left - 2 : right;
      if (chosen) pen.rect(bar, y - h / 2 + 0.5, 2, h - 1, query ? theme.accent : theme.warm);
      for (const { colour } of this.viewer.regionsAt(i)) pen.rect(query ? 0 : this.size.w - 3, y - h / 2, 3, h, theme.regions[colour]);
      const look = { fill, size: 12, weight: chosen ? 700 : 400 };
      if (query) pen.text(left - 8, y, words, { ...look, anchor: "end" });
      else pen.text(right + 8, y, words, look);
      const place = { fill: share > 0.4 ? theme.ink : theme.soft, size: 9 };
      if (query) pen.text(6, y, String(i), place);
      else pen.text(this.size.w - 6, y, String(i), { ...place, anchor: "end" });
      if (i >= this.meta.prompt_length) pen.line([[x, y + h / 2], [x + wide, y + h / 2]], theme.accent, { dash: [1, 3] });
    }
    paintOver() {}

    /** Token at a place: of the queries at the left, of the keys at the right. */
    pick(x, y) {
      const [q0, k0, q1, k1] = this.box;
      const { left, right } = this.columns;
      const at = Math.floor((y + this.panel.scrolled - TOP) / this.rowHeight);
      if (y < TOP - 8 || at < 0) return null;
      if (x <= left + 6 && q0 + at < q1) return { query: q0 + at, key: null };
      if (x >= right - 6 && k0 + at < k1) return { query: null, key: k0 + at };
      return null;
    }
    look(query, key) {
      return { value: this.weight(query, key), side: 1, visible: this.viewer.sees(this.viewer.store.state.layer, query, key), query, key };
    }
    table() {
      const rows = [["query", "key", "query_token", "key_token", "weight"]];
      const [q0, k0, q1, k1] = this.box;
      const { layer } = this.viewer.store.state;
      for (let q = q0; q < q1; q++) for (let k = k0; k < k1; k++) if (this.viewer.sees(layer, q, k)) rows.push([q, k, this.meta.tokens[q], this.meta.tokens[k], this.weight(q, k)]);
      return rows;
    }
    debug() {
      return { box: this.box, drawn: this.drawn.length, columns: this.columns, rowHeight: this.rowHeight, top: TOP };
    }
  }
  parts.Lines = Lines;
})();
