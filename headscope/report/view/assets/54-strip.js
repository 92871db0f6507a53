/* Attention over the whole context as one strip; where the text is scrolled to; click to go there. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const HEIGHT = 30;

  class Strip {
    constructor(panel) {
      this.panel = panel;
      this.viewer = panel.viewer;
      this.base = el("canvas", { "aria-hidden": "true" });
      this.over = el("canvas", { "aria-hidden": "true" });
      this.element = el("div", { class: "hs-strip", role: "img", "aria-label": "Attention over the whole context; click to scroll the text there" }, this.base, this.over);
      this.draw = parts.perFrame(() => {
        const w = this.element.clientWidth;
        if (!w) return;
        const context = parts.fit(this.base, w, HEIGHT);
        context.clearRect(0, 0, w, HEIGHT);
        this.paint(new parts.CanvasPen(context, this.viewer.theme), 0, 0, w, HEIGHT);
        this.paintOver();
      });
      this.drawOver = parts.perFrame(() => this.paintOver());
      this.element.addEventListener("pointermove", (event) => this.point(event));
      this.element.addEventListener("pointerleave", () => {
        this.viewer.hover.clear("strip");
        this.viewer.tip.hide();
      });
      let held = false;
      this.element.addEventListener("pointerdown", (event) => {
        held = true;
        this.element.setPointerCapture(event.pointerId);
        this.go(event);
      });
      this.element.addEventListener("pointermove", (event) => held && this.go(event));
      this.element.addEventListener("pointerup", () => (held = false));
    }
    token(event) {
      const box = this.element.getBoundingClientRect();
      return parts.clamp(Math.floor(((event.clientX - box.left) / box.width) * this.viewer.meta.length), 0, this.viewer.meta.length - 1);
    }
    /** The strongest of the tokens under the pointer: a pixel may stand for many. */
    strongest(event) {
      const { values } = this.panel;
      const at = this.token(event);
      if (!values) return at;
      const reach = Math.ceil((2 * this.viewer.meta.length) / Math.max(this.element.clientWidth, 1));
      let best = at;
      for (let i = Math.max(0, at - reach); i <= Math.min(values.length - 1, at + reach); i++) if (values[i] > values[best]) best = i;
      return best;
    }
    point(event) {
      if (!this.panel.values) return;
      const i = this.strongest(event);
      this.panel.hoverAt(i);
      this.viewer.tip.show(event, [[`${parts.quote(this.viewer.meta.tokens[i], 30)} ${i}`], ["weight", parts.number(this.panel.values[i])]]);
    }
    go(event) {
      this.panel.flow.reveal(this.strongest(event), true);
    }

    paint(pen, x0, y0, w, h) {
      const { theme, meta } = this.viewer;
      const { values } = this.panel;
      const bottom = y0 + h - 5;
      pen.rect(x0, y0, w, bottom - y0, theme.wash);
      const columns = Math.min(Math.round(w), meta.length);
      const wide = w / columns;
      for (let c = 0; values && c < columns; c++) {
        let most = 0;
        for (let i = Math.floor((c * meta.length) / columns); i < Math.ceil(((c + 1) * meta.length) / columns); i++) most = Math.max(most, values[i]);
        const tall = this.panel.share(most) * (bottom - y0);
        if (tall > 0.3) pen.rect(x0 + c * wide, bottom - tall, Math.max(wide - (wide > 4 ? 1 : 0), 0.8), tall, theme.gold);
      }
      for (const { runs, colour } of this.viewer.regions) for (const [start, end] of runs) pen.rect(x0 + (start / meta.length) * w, bottom + 1, Math.max(((end - start) / meta.length) * w, 1.5), 3, theme.regions[colour]);
      if (meta.prompt_length < meta.length) pen.line([[x0 + (meta.prompt_length / meta.length) * w, y0], [x0 + (meta.prompt_length / meta.length) * w, bottom]], theme.accent, { dash: [2, 2] });
    }
    paintOver() {
      const w = this.element.clientWidth;
      if (!w) return;
      const { theme, meta, store, hover, key } = this.viewer;
      const context = parts.fit(this.over, w, HEIGHT);
      context.clearRect(0, 0, w, HEIGHT);
      const pen = new parts.CanvasPen(context, theme);
      const x = (i) => (i / meta.length) * w;
      const [first, last] = this.panel.flow.sight;
      if (last - first < meta.length) pen.rect(x(first) + 0.5, 0.5, Math.max(x(last) - x(first) - 1, 3), HEIGHT - 1, null, { stroke: theme.grey });
      const mark = (i, colour) => i !== null && pen.line([[x(i + 0.5), 0], [x(i + 0.5), HEIGHT - 5]], colour, { width: 1.5 });
      mark(store.query, theme.accent);
      mark(key, theme.warm);
      mark(this.viewer.store.state.side === "row" ? hover.key : hover.query, theme.ink);
    }
  }
  parts.Strip = Strip;
})();
