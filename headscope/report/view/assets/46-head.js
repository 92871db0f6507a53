/* Head view: lines, tokens or map of the chosen head; tools, pointer and readout. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const LINES = 64;

  class HeadPanel extends parts.Panel {
    constructor(viewer) {
      super(viewer, "head", "Head");
      const { store, meta } = viewer;
      this.scrolled = 0;
      this.under = null;
      this.tiles = new parts.Tiles(viewer.data.source, meta, () => this.arrived());
      this.heat = new parts.Heat(this);
      this.lines = new parts.Lines(this);
      this.mode = parts.segmented("Kind of head view", [["auto", "auto", "Choose by the length of the text (m)"], ["lines", "lines", "Two columns of tokens joined by lines"], ["tokens", "tokens", "Heat-map with tokens on both axes"], ["map", "map", "Zoomable map, any length"]], (mode) => store.set({ mode }));
      this.reduce = parts.segmented("A cell of several tokens shows", [["max", "max", "The largest weight of the block (r)"], ["mean", "mean", "The mean weight of the block (r)"]], (reduce) => store.set({ reduce }));
      this.scale = parts.segmented("Colour scale", [["linear", "lin", "Colour by weight (s)"], ["sqrt", "√", "Colour by the square root of the weight (s)"], ["log", "log", "Colour by the logarithm of the weight, four decades (s)"]], (scale) => store.set({ scale }));
      const zoom = (label, words, work) => el("button", { type: "button", class: "hs-segment", "aria-label": words, title: words, text: label, on: { click: work } });
      this.zooms = el("div", { class: "hs-segmented hs-zooms", role: "group", "aria-label": "Zoom" }, zoom("−", "Zoom out (−)", () => this.zoom(0.5)), zoom("+", "Zoom in (+)", () => this.zoom(2)), zoom("⤢", "Show everything (0)", () => this.reset()));
      this.tools.append(this.mode.element, this.reduce.element, this.scale.element);
      this.canvas = el("canvas", { "aria-hidden": "true" });
      this.over = el("canvas", { "aria-hidden": "true" });
      this.spacer = el("div", { class: "hs-spacer" });
      this.stage = el("div", { class: "hs-stage", tabindex: "0", role: "application" }, el("div", { class: "hs-stack" }, this.canvas, this.over), this.spacer);
      this.readout = el("div", { class: "hs-readout" });
      this.legend = el("canvas", { class: "hs-legend", role: "img", "aria-label": "Colour bar of weights" });
      this.body.append(this.stage, this.zooms, el("div", { class: "hs-foot" }, this.readout, this.legend));
      this.draw = parts.perFrame(() => this.paintAll());
      this.drawOver = parts.perFrame(() => this.paintOver());
      parts.headPointer(this);
      this.stage.addEventListener("scroll", () => {
        this.scrolled = this.stage.scrollTop;
        this.draw();
      });
      store.watch((changed) => this.follow(changed));
      viewer.hover.watch(() => (this.kind === "lines" ? this.draw() : this.drawOver()));
    }

    /** Mode in force: `auto` goes by length. */
    get kind() {
      const { mode } = this.viewer.store.state;
      if (mode !== "auto") return mode;
      const { length } = this.viewer.meta;
      return length <= LINES ? "lines" : length <= 256 ? "tokens" : "map";
    }
    get view() {
      return this.kind === "lines" ? this.lines : this.heat;
    }

    follow(changed) {
      const { state } = this.viewer.store;
      if (changed.has("layer") || changed.has("head")) this.under = null;
      if (changed.has("mode")) this.arrange();
      else if (changed.has("box") && this.kind !== "lines") this.heat.show(state.box);
      this.draw();
      if (changed.has("query") || changed.has("key") || changed.has("wrote")) this.reveal();
      this.label();
    }
    /** Bring a pair that was chosen elsewhere into sight, when the map is zoomed in. */
    reveal() {
      if (this.own) return;
      if (this.kind === "lines") {
        const { lines, stage } = this;
        const y = lines.y(this.viewer.store.query, lines.box[0]) + this.scrolled;
        if (y < stage.scrollTop + 40 || y > stage.scrollTop + stage.clientHeight - 10) stage.scrollTop = y - stage.clientHeight / 2;
        return;
      }
      if (this.heat.fitted) return;
      const [q0, k0, q1, k1] = this.heat.box;
      const { query } = this.viewer.store;
      const key = this.viewer.store.state.key ?? Math.floor((k0 + k1) / 2);
      if (query >= q0 && query < q1 && key >= k0 && key < k1) return;
      this.heat.centre(query >= q0 && query < q1 ? Math.floor((q0 + q1) / 2) : query, key >= k0 && key < k1 ? Math.floor((k0 + k1) / 2) : key);
      this.moved();
    }
    arrange() {
      const { kind } = this;
      this.heat.labels = kind === "tokens";
      this.stage.classList.toggle("hs-map", kind !== "lines");
      this.element.dataset.mode = kind;
      this.resize();
      if (kind !== "lines") {
        if (this.viewer.store.state.box) this.heat.show(this.viewer.store.state.box);
        else this.heat.fit();
      }
      this.zooms.hidden = kind === "lines";
      this.draw();
      this.label();
    }
    resize() {
      const [w, h] = [this.stage.clientWidth, this.stage.clientHeight];
      if (!w || !h) return;
      this.heat.resize(w, h);
      this.lines.resize(w, h);
      this.draw();
    }
    label() {
      const { state, query } = this.viewer.store;
      this.mode.show(state.mode);
      this.reduce.show(state.reduce);
      this.scale.show(state.scale);
      this.heading.replaceChildren(`Layer ${state.layer}, head ${state.head}`);
      this.stage.setAttribute("aria-label", `Attention of layer ${state.layer}, head ${state.head}, as ${this.kind === "lines" ? "lines between tokens" : "a heat-map, queries downwards, keys to the right"}. Query ${query}. Plus, minus and zero zoom; Shift with arrows moves.`);
      if (!this.under) this.tell();
    }

    arrived() {
      const trouble = this.tiles.error;
      if (trouble) this.fail(trouble, () => {
        this.tiles.retry();
        this.draw();
      });
      this.draw();
    }
    paintAll() {
      const { view } = this;
      if (!this.stage.clientWidth) return;
      if (view === this.lines && this.shown !== "lines") {
        // The list of lines has its height only now: go to the query.
        this.spacer.style.height = `${Math.max(view.height, view.size.h)}px`;
        this.reveal();
      }
      this.shown = this.kind;
      view.need();
      const pending = this.tiles.pending;
      if (this.tiles.error) this.rest();
      else if (pending) {
        if (this.element.dataset.state !== "loading") {
          this.mark("loading");
          clearTimeout(this.slow);
          this.slow = setTimeout(() => (this.busy.hidden = false), 150);
        }
      } else {
        this.rest();
        this.trouble.hidden = true;
      }
      this.spacer.style.height = view === this.lines ? `${Math.max(view.height, view.size.h)}px` : "0";
      if (view === this.heat) this.stage.scrollTop = 0;
      this.scrolled = this.stage.scrollTop;
      const { w, h } = view.size;
      const context = parts.fit(this.canvas, w, h);
      context.clearRect(0, 0, w, h);
      view.paint(new parts.CanvasPen(context, this.viewer.theme));
      this.paintLegend();
      this.paintOver();
      if (!pending && !this.tiles.error) {
        this.mark("ready");
        this.viewer.quiet();
      }
    }
    paintOver() {
      const { w, h } = this.view.size;
      const context = parts.fit(this.over, w, h);
      context.clearRect(0, 0, w, h);
      this.view.paintOver(new parts.CanvasPen(context, this.viewer.theme));
      this.tell();
    }
    get top() {
      return this.kind === "lines" ? 1 : this.heat.top;
    }
    paintLegend() {
      const context = parts.fit(this.legend, 190, 26);
      context.clearRect(0, 0, 190, 26);
      this.bar(new parts.CanvasPen(context, this.viewer.theme), 1, 3, 186);
    }
    bar(pen, x, y, w) {
      const { theme, store } = this.viewer;
      const { scale } = store.state;
      const at = this.kind === "lines" ? (s) => `color-mix(in srgb, ${theme.heat} ${Math.round(s * 100)}%, ${theme.panel})` : theme.rampAt;
      parts.colourBar(pen, x, y, w, { at, ticks: parts.ticksOf(scale, this.top), label: (value) => parts.tick(Number(value.toPrecision(2))) });
    }

    /** One line under the picture: the pair under the pointer, else the chosen one. */
    tell() {
      const { viewer } = this;
      const { store, meta } = viewer;
      const [query, key] = this.under ? [this.under.query, this.under.key] : [store.query, viewer.key];
      const name = (i) => el("span", {}, el("b", { text: parts.quote(meta.tokens[i], 22) }), ` ${i}`);
      const row = [];
      const worth = el("div", { class: "hs-value" });
      if (query !== null) row.push(name(query));
      if (query !== null && key !== null) row.push(" → ");
      if (key !== null) row.push(name(key));
      if (query !== null && key !== null) {
        const at = this.exact(query, key) || this.view.look(query, key);
        worth.append(...this.worth(at));
      }
      this.readout.replaceChildren(el("div", {}, ...row), worth);
      this.readout.classList.toggle("hs-resting", !this.under);
    }
    /** The weight itself where it is known: of the chosen pair from its row, however far the map is zoomed out. */
    exact(query, key) {
      const { layer, head } = this.viewer.store.state;
      const row = this.under ? null : this.viewer.data.rowNow(layer, head, query);
      return row ? { value: row[key], side: 1, visible: this.viewer.sees(layer, query, key), query, key } : null;
    }
    worth(at) {
      const { reduce } = this.viewer.store.state;
      if (!at) return ["…"];
      if (at.side === 1) return at.visible ? [parts.number(at.value)] : ["not visible to this query"];
      const [q, k] = [at.query, at.key].map((i) => Math.floor(i / at.side) * at.side);
      return [`${reduce} ${parts.number(at.value)} `, el("span", { class: "hs-soft", text: `of the ${at.side} × ${at.side} block at ${q}, ${k}` })];
    }

    /** The pointer is over a pair, or over none. */
    point(found) {
      this.under = found;
      this.viewer.hover.set(found ? found.query : null, found ? found.key : null, "head");
      if (!found) this.tell();
    }
    async choose(found, event) {
      const { store } = this.viewer;
      if (this.kind !== "lines" && found.query !== null && found.key !== null) {
        // A block of many pairs: the one that made it bright is meant.
        const { layer, head } = store.state;
        found = await this.heat.strongest(found);
        if (this.viewer.gone || store.state.layer !== layer || store.state.head !== head) return;
      }
      this.own = true;
      const partial = {};
      if (found.query !== null && !(found.key !== null && (event.shiftKey || event.altKey))) Object.assign(partial, { query: found.query, wrote: false });
      if (found.key !== null) partial.key = found.key;
      store.set(partial);
      this.own = false;
    }
    zoom(factor, x, y) {
      if (this.kind === "lines") return;
      parts.glide(factor, (part) => {
        this.heat.zoom(part, x, y);
        this.moved();
      });
    }
    reset() {
      if (this.kind === "lines") return;
      this.heat.fit();
      this.moved();
    }
    move(dx, dy) {
      if (this.kind === "lines") this.stage.scrollTop -= dy;
      else {
        this.heat.pan(dx, dy);
        this.moved();
      }
    }
    /** The camera moved by hand: tell the state, draw in the next frame. */
    moved() {
      this.viewer.touch();
      this.viewer.store.set({ box: this.heat.fitted ? null : this.heat.box });
      this.draw();
    }

    themed() {
      this.draw();
    }
    picture() {
      const { w, h } = this.view.size;
      return { width: w, height: h + 40, paint: (pen) => {
        this.view.paint(pen);
        this.view.paintOver(pen);
        this.bar(pen, 92, h + 10, 190);
        pen.text(300, h + 14, `${this.viewer.meta.model}, ${this.heading.textContent.toLowerCase()}`, { fill: this.viewer.theme.soft, size: 10 });
      } };
    }
    table() {
      return this.view.table();
    }
    debug() {
      const at = this.under && this.under.query !== null && this.under.key !== null ? this.view.look(this.under.query, this.under.key) : null;
      return { mode: this.kind, reduce: this.viewer.store.state.reduce, pending: this.tiles.pending, cached: this.tiles.cache.entries.size, hover: at, under: this.under, ...this.view.debug() };
    }
    destroy() {
      this.tiles.destroy();
      this.draw.cancel();
      this.drawOver.cancel();
      this.heat.settle.cancel();
    }
  }
  parts.HeadPanel = HeadPanel;
})();
