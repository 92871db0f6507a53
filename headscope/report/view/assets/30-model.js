/* Model view: layers × heads, coloured by a statistic or showing each head's pattern; choose a head here. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const LEFT = 26;
  const TOP = 32;
  const THUMB_CELL = 24;
  const BEST = 6;

  class ModelPanel extends parts.Panel {
    constructor(viewer) {
      super(viewer, "model", "Heads");
      const { meta, store } = viewer;
      [this.layers, this.heads] = [meta.layers, Math.max(...meta.heads)];
      this.values = null;
      this.thumbs = new Map();
      this.held = meta.held ? new Set(meta.held) : null;
      this.at = null;
      this.stat = parts.select("Statistic that colours the heads", (stat) => store.set({ stat }), () => this.grid.focus());
      this.toggle = el("button", { type: "button", class: "hs-button", text: "Patterns", title: "Show each head's pattern (t)", on: { click: () => store.set({ thumbs: !store.state.thumbs }) } });
      this.tools.append(this.stat, this.toggle);
      this.canvas = el("canvas", { "aria-hidden": "true" });
      this.grid = el("div", { class: "hs-grid", tabindex: "0", role: "application", "aria-label": "Layers by heads. Arrow keys choose a head." }, this.canvas);
      this.legend = el("canvas", { class: "hs-legend", role: "img", "aria-label": "Colour bar" });
      this.best = el("div", { class: "hs-best", role: "group", "aria-label": "Heads with the largest values" });
      this.about = el("p", { class: "hs-about", tabindex: "0" });
      this.body.append(this.grid, el("div", { class: "hs-under" }, this.legend, this.best, this.about));
      this.draw = parts.perFrame(() => this.paintAll());
      this.grid.addEventListener("pointermove", (event) => this.hover(event));
      this.grid.addEventListener("pointerleave", () => this.hover(null));
      this.grid.addEventListener("click", (event) => {
        const found = this.cellAt(event);
        if (found) store.set({ layer: found.layer, head: found.head });
      });
      this.grid.addEventListener("scroll", () => {
        this.needThumbs();
        this.draw();
      });
      store.watch((changed) => {
        if (changed.has("stat")) this.refresh();
        if (changed.has("thumbs")) this.layout();
        if (changed.has("scale")) this.thumbs.clear();
        if (["layer", "head", "thumbs", "scale"].some((name) => changed.has(name))) this.follow();
      });
    }

    refresh() {
      const { meta, store, data } = this.viewer;
      const names = meta.stats.map((one) => one.name);
      const extra = store.state.stat && !names.includes(store.state.stat) ? [{ name: store.state.stat, label: store.state.stat.replace(/^ranking:/, "ranking ") }] : [];
      this.stat.replaceChildren(...[...meta.stats, ...extra].map((one) => el("option", { value: one.name, text: one.label })));
      this.stat.value = store.state.stat;
      this.load(() => data.stat(store.state.stat).catch((error) => {
        this.values = null;
        this.best.replaceChildren();
        this.about.textContent = "";
        this.draw();
        throw error;
      }), (values) => {
        this.values = values;
        this.domain = this.domainOf(values);
        this.list();
        this.layout();
      });
    }
    get info() {
      const { meta, store } = this.viewer;
      return meta.stats.find((one) => one.name === store.state.stat) || { name: store.state.stat, label: (store.state.stat || "").replace(/^ranking:/, "ranking "), unit: "", about: "" };
    }
    domainOf(values) {
      const known = Array.from(values).filter(Number.isFinite);
      const { low, high } = this.info;
      let [least, most] = [low ?? Math.min(...known, Infinity), high ?? Math.max(...known, -Infinity)];
      if (!Number.isFinite(least) || !Number.isFinite(most)) [least, most] = [0, 1];
      if (least < 0 && most > 0) {
        const far = Math.max(-least, most);
        return { low: -far, high: far, diverging: true };
      }
      return { low: least, high: most > least ? most : least + 1, diverging: false };
    }
    share(value) {
      return (value - this.domain.low) / (this.domain.high - this.domain.low);
    }
    value(layer, head) {
      return this.values ? this.values[layer * this.heads + head] : NaN;
    }

    list() {
      const { store, meta } = this.viewer;
      const values = Array.from(this.values, (v) => (Number.isFinite(v) ? v : -Infinity));
      const order = values.map((_, i) => i).filter((i) => values[i] > -Infinity).sort((a, b) => values[b] - values[a]).slice(0, BEST);
      this.best.replaceChildren(...order.map((i) => {
        const [layer, head] = [Math.floor(i / this.heads), i % this.heads];
        return el("button", { type: "button", class: "hs-chip", title: `Layer ${layer}, head ${head}`, on: { click: () => store.set({ layer, head }) } },
          el("b", { text: `${layer}.${head}` }), ` ${parts.number(values[i], 3)}`);
      }));
      this.about.textContent = this.info.about || "";
      this.grid.setAttribute("aria-label", `${meta.layers} layers by ${this.heads} heads, coloured by ${this.info.label}. Arrow keys choose a head.`);
    }

    /** Place cells: fitted to the panel, or large enough for patterns, with a scroll bar. */
    layout() {
      const { thumbs } = this.viewer.store.state;
      const room = { w: Math.max(this.grid.clientWidth, 80), h: Math.max(this.body.clientHeight - this.grid.nextSibling.offsetHeight - 6, 120) };
      let w = (room.w - LEFT - 2) / this.heads;
      let h = (room.h - TOP - 2) / this.layers;
      if (thumbs) w = h = Math.max(Math.min(w - 1, 120), THUMB_CELL);
      else [w, h] = [Math.max(Math.min(w, 64), 4), Math.max(Math.min(h, 40), 4)];
      this.cell = { w, h };
      this.size = { w: LEFT + w * this.heads + 2, h: TOP + h * this.layers + 2 };
      this.grid.style.height = `${Math.min(room.h, this.size.h)}px`;
      this.grid.classList.toggle("hs-scrolls", this.size.h > room.h + 1 || this.size.w > room.w + 1);
      this.toggle.setAttribute("aria-pressed", String(thumbs));
      this.draw();
      this.follow();
    }
    /** Keep the chosen head in sight. */
    follow() {
      const { layer, head } = this.viewer.store.state;
      const { w, h } = this.cell;
      const [x, y] = [LEFT + head * w, TOP + layer * h];
      if (y - TOP < this.grid.scrollTop) this.grid.scrollTop = y - TOP;
      else if (y + h > this.grid.scrollTop + this.grid.clientHeight) this.grid.scrollTop = y + h - this.grid.clientHeight;
      if (x - LEFT < this.grid.scrollLeft) this.grid.scrollLeft = x - LEFT;
      else if (x + w > this.grid.scrollLeft + this.grid.clientWidth) this.grid.scrollLeft = x + w - this.grid.clientWidth;
      this.needThumbs();
      this.draw();
    }

    /** Ask for the patterns of the layers in sight. */
    needThumbs() {
      const { store, data } = this.viewer;
      if (!store.state.thumbs || !this.cell) return;
      const first = Math.max(0, Math.floor((this.grid.scrollTop - TOP) / this.cell.h));
      const last = Math.min(this.layers - 1, Math.floor((this.grid.scrollTop + this.grid.clientHeight - TOP) / this.cell.h));
      for (let layer = first; layer <= last; layer++) {
        if (!this.viewer.meta.heads[layer] || this.thumbs.has(layer)) continue;
        this.thumbs.set(layer, null);
        data.thumbs(layer).then((values) => {
          this.thumbs.set(layer, this.pictures(layer, values));
          this.draw();
        }).catch((error) => {
          this.thumbs.delete(layer);
          if (error.name !== "AbortError") this.fail(error, () => this.needThumbs());
        });
      }
    }
    pictures(layer, values) {
      const { meta, store, theme } = this.viewer;
      const n = Math.min(meta.thumb, Math.round(Math.sqrt(values.length / meta.heads[layer])));
      const share = parts.transfer(store.state.scale, 1);
      const skip = meta.causal[layer] ? (r, c) => c > r : null;
      return Array.from({ length: meta.heads[layer] }, (_, head) => parts.raster(values.subarray(head * n * n, (head + 1) * n * n), n, n, share, theme.ramp, skip));
    }

    paintAll() {
      if (!this.size) return;
      const { theme } = this.viewer;
      this.paint(new parts.CanvasPen(this.clear(this.canvas, this.size.w, this.size.h), theme), this.grid.scrollTop, this.grid.scrollLeft);
      const w = Math.max(this.grid.clientWidth - 8, 80);
      this.paintLegend(new parts.CanvasPen(this.clear(this.legend, w, 38), theme), 0, 14, w);
    }
    clear(canvas, w, h) {
      const context = parts.fit(canvas, w, h);
      context.clearRect(0, 0, w, h);
      return context;
    }
    colour(value) {
      const { theme } = this.viewer;
      return this.domain.diverging ? theme.divergingAt(this.share(value)) : theme.rampAt(this.share(value));
    }
    paint(pen, top = 0, left = 0) {
      const { theme, meta, store } = this.viewer;
      const { w, h } = this.cell;
      const gap = Math.min(w, h) > 9 ? 1 : 0;
      const step = (size, need) => [1, 2, 5, 10, 20, 50].find((n) => n * size >= need) || 100;
      const [every, each] = [step(h, 11), step(w, this.heads > 10 ? 18 : 12)];
      for (let layer = 0; layer < this.layers; layer++) for (let head = 0; head < meta.heads[layer]; head++) this.paintCell(pen, layer, head, gap);
      this.paintChoice(pen);
      // Numbers of layers and heads stay in sight while the cells scroll below them.
      if (left) pen.rect(left, 0, LEFT, this.size.h, theme.panel);
      for (let layer = 0; layer < this.layers; layer++) {
        const chosen = layer === store.state.layer;
        if (layer % every === 0 || chosen) pen.text(left + LEFT - 6, TOP + (layer + 0.5) * h, String(layer), { fill: chosen ? theme.ink : theme.soft, size: 10, anchor: "end", weight: chosen ? 700 : 400 });
      }
      if (top) pen.rect(left, top, this.size.w, TOP - 2, theme.panel);
      pen.text(left, top + 21, "layer", { fill: theme.soft, size: 9 });
      pen.text(LEFT + (this.heads * w) / 2, top + 6, "head", { fill: theme.soft, size: 9, anchor: "middle" });
      for (let head = 0; head < this.heads; head++) {
        const chosen = head === store.state.head;
        if (head % each === 0 || chosen) pen.text(LEFT + (head + 0.5) * w, top + 21, String(head), { fill: chosen ? theme.ink : theme.soft, size: 10, anchor: "middle", weight: chosen ? 700 : 400 });
      }
    }
    /** Outline the chosen head, and the one under the pointer. */
    paintChoice(pen) {
      const { theme, store } = this.viewer;
      const { w, h } = this.cell;
      const { layer, head } = store.state;
      const [x, y] = [LEFT + head * w, TOP + layer * h];
      pen.rect(x - 0.5, y - 0.5, w, h, null, { stroke: theme.panel, width: 4 });
      pen.rect(x - 0.5, y - 0.5, w, h, null, { stroke: theme.warm, width: 2 });
      if (this.at && (this.at.layer !== layer || this.at.head !== head)) pen.rect(LEFT + this.at.head * w - 0.5, TOP + this.at.layer * h - 0.5, w, h, null, { stroke: theme.ink, width: 1 });
    }
    paintCell(pen, layer, head, gap) {
      const { theme, store } = this.viewer;
      const { w, h } = this.cell;
      const [x, y] = [LEFT + head * w, TOP + layer * h];
      const picture = store.state.thumbs && this.thumbs.get(layer);
      if (store.state.thumbs) {
        pen.rect(x, y, w - gap, h - gap, theme.wash);
        if (picture) pen.image(picture[head], 0, 0, picture[head].width, picture[head].height, x, y, w - gap, h - gap);
        this.paintHeld(pen, layer, head, theme.ink);
        return;
      }
      const value = this.value(layer, head);
      if (!Number.isFinite(value)) {
        if (this.values) pen.hatched([[x, y], [x + w - gap, y], [x + w - gap, y + h - gap], [x, y + h - gap]]);
        else pen.rect(x, y, w - gap, h - gap, theme.wash);
        return;
      }
      pen.rect(x, y, w - gap, h - gap, this.colour(value));
      this.paintHeld(pen, layer, head, (this.domain.diverging ? theme.onDiverging : theme.onRamp)(this.share(value)));
    }
    /** A dot where the pattern can be looked at, if a file holds that of some heads only. */
    paintHeld(pen, layer, head, colour) {
      const { w, h } = this.cell;
      if (this.held && this.held.has(`${layer}.${head}`) && w > 7 && h > 6) pen.circle(LEFT + (head + 1) * w - 4.5, TOP + layer * h + 3.5, 1.6, colour);
    }
    paintLegend(pen, x, y, w) {
      const { theme, store } = this.viewer;
      if (store.state.thumbs) {
        parts.colourBar(pen, x, y, w, { at: theme.rampAt, ticks: parts.ticksOf(store.state.scale, 1), title: "patterns: largest weight of each block" });
        return;
      }
      if (!this.values) return;
      const { low, high, diverging } = this.domain;
      const ticks = [0, 0.5, 1].map((share) => [share, low + share * (high - low)]);
      const at = diverging ? theme.divergingAt : theme.rampAt;
      parts.colourBar(pen, x, y, w, { at, ticks, title: this.info.label + (this.info.unit ? `, ${this.info.unit}` : "") });
    }

    cellAt(event) {
      const box = this.canvas.getBoundingClientRect();
      const edge = this.grid.getBoundingClientRect();
      if (event.clientY - edge.top < TOP || event.clientX - edge.left < LEFT) return null;
      const head = Math.floor((event.clientX - box.left - LEFT) / this.cell.w);
      const layer = Math.floor((event.clientY - box.top - TOP) / this.cell.h);
      const inside = layer >= 0 && layer < this.layers && head >= 0 && head < this.viewer.meta.heads[layer];
      return inside ? { layer, head } : null;
    }
    hover(event) {
      const found = event && this.cellAt(event);
      if ((found && found.layer) === (this.at && this.at.layer) && (found && found.head) === (this.at && this.at.head)) {
        if (found) this.viewer.tip.move(event);
        return;
      }
      this.at = found;
      if (found) {
        const { label, unit } = this.info;
        const only = this.held && !this.held.has(`${found.layer}.${found.head}`) ? [["pattern", "not in this file"]] : [];
        this.viewer.tip.show(event, [[`Layer ${found.layer}, head ${found.head}`], ...only, [label, `${parts.number(this.value(found.layer, found.head))}${unit ? ` ${unit}` : ""}`]]);
      } else this.viewer.tip.hide();
      this.draw();
    }

    themed() {
      this.thumbs.clear();
      this.needThumbs();
      this.draw();
    }
    picture() {
      const height = this.size.h + 44;
      return { width: Math.max(this.size.w, 200), height, paint: (pen) => {
        this.paint(pen);
        this.paintLegend(pen, LEFT, this.size.h + 18, Math.max(this.size.w, 200) - LEFT - 4);
      } };
    }
    table() {
      const rows = [["layer", "head", this.info.name]];
      this.viewer.meta.heads.forEach((heads, layer) => {
        for (let head = 0; head < heads; head++) rows.push([layer, head, this.value(layer, head)]);
      });
      return rows;
    }
    fileName() {
      return `${this.viewer.meta.model}-${this.info.name}`.replace(/[^\w.-]+/g, "_");
    }
    debug() {
      const at = this.at;
      return { stat: this.viewer.store.state.stat, hover: at && { ...at, value: this.value(at.layer, at.head) }, cell: this.cell, origin: [LEFT, TOP], thumbs: [...this.thumbs].filter(([, made]) => made).map(([layer]) => layer) };
    }
  }
  parts.ModelPanel = ModelPanel;
})();
