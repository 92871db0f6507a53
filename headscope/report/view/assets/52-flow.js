/* The prompt as running text of any length: lines are laid out once by measuring, only those in sight are elements. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const LINE = 21;
  const PAD = 6;
  const SPARE = 4;

  const shown = (text) => text.replaceAll("\t", "⇥").replace(/\r?\n|\r/g, "↵");
  const breaks = (text) => /[\n↵]/.test(text);

  class Flow {
    constructor(panel) {
      this.panel = panel;
      this.viewer = panel.viewer;
      const { meta } = this.viewer;
      this.words = meta.tokens.map(shown);
      this.lines = [];
      this.rows = new Map();
      this.lineOf = new Int32Array(meta.length);
      this.width = 0;
      this.drawnLines = [0, 0];
      this.inner = el("div", { class: "hs-lines" });
      this.element = el("div", { class: "hs-flow", tabindex: "0", role: "group", "aria-label": "The text, token by token" }, this.inner);
      this.draw = parts.perFrame(() => this.fill());
      this.element.addEventListener("scroll", () => {
        this.draw();
        this.panel.strip.drawOver();
      });
      const token = (event) => {
        const span = event.target.closest && event.target.closest(".hs-t");
        return span ? Number(span.dataset.i) : null;
      };
      this.element.addEventListener("pointermove", (event) => {
        const i = token(event);
        if (i === null) this.leave();
        else this.over(i, event);
      });
      this.element.addEventListener("pointerleave", () => this.leave());
      // Shift chooses a key here; it must not stretch a selection from the last click.
      this.element.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault());
      this.element.addEventListener("click", (event) => {
        const i = token(event);
        if (i !== null && (event.shiftKey || getSelection().isCollapsed)) panel.pick(i, event, this.viewer.store.state.side === "row");
      });
    }
    over(i, event) {
      const { panel, viewer } = this;
      if (i === this.at) {
        viewer.tip.move(event);
        return;
      }
      this.at = i;
      panel.hoverAt(i);
      const regions = viewer.regionsAt(i).map((one) => one.name).join(", ");
      const facts = [[`${parts.quote(viewer.meta.tokens[i], 30)} ${i}`], ["weight", !panel.values ? "…" : panel.reaches(i) ? parts.number(panel.values[i]) : "not visible"]];
      if (regions) facts.push(["region", regions]);
      if (i >= viewer.meta.prompt_length) facts.push(["generated"]);
      viewer.tip.show(event, facts);
    }
    leave() {
      if (this.at === null || this.at === undefined) return;
      this.at = null;
      this.viewer.hover.clear("text");
      this.viewer.tip.hide();
    }

    /** Break the tokens into lines of the panel's width. */
    resize() {
      // A little less than there is: measured and drawn text differ by fractions of a pixel a token.
      const width = Math.floor(0.98 * (this.element.clientWidth - 2 * PAD));
      if (width <= 0) return;
      const style = getComputedStyle(this.inner);
      const font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
      if (width !== this.width || font !== this.font) {
        if (font !== this.font) this.widths = null;
        [this.width, this.font] = [width, font];
        this.measure();
        this.breakLines();
      }
      this.draw();
    }
    measure() {
      if (this.widths) return;
      const context = document.createElement("canvas").getContext("2d");
      context.font = this.font;
      const known = new Map();
      this.blank = context.measureText(" ").width;
      this.widths = Float32Array.from(this.words, (word) => {
        let wide = known.get(word);
        if (wide === undefined) known.set(word, (wide = context.measureText(word).width));
        return wide;
      });
    }
    breakLines() {
      const { length, prompt_length } = this.viewer.meta;
      this.lines = [];
      this.rows.clear();
      this.wrapped = new Set();
      let start = 0;
      let x = 0;
      const end = (at) => {
        if (at > start) this.lines.push([start, at]);
        start = at;
        x = 0;
      };
      for (let i = 0; i < length; i++) {
        if (i === prompt_length) end(i);
        else if (x > 0 && x + this.widths[i] > this.width) {
          end(i);
          this.wrapped.add(i);
        }
        x += this.wide(i);
        if (breaks(this.viewer.meta.tokens[i])) end(i + 1);
      }
      end(length);
      this.lines.forEach(([from, to], line) => this.lineOf.fill(line, from, to));
      this.inner.style.height = `${this.lines.length * LINE + 2 * PAD}px`;
    }
    /** Height of the lines in sight. */
    get viewHeight() {
      const [first, last] = this.window;
      return (last - first) * LINE;
    }
    /** Lines in sight. */
    get window() {
      const top = this.element.scrollTop;
      return [Math.max(0, Math.floor((top - PAD) / LINE)), Math.min(this.lines.length, Math.ceil((top + this.element.clientHeight - PAD) / LINE))];
    }

    /** Shade the lines in sight anew. */
    shade() {
      this.rows.clear();
      this.draw();
    }
    /** Make elements of the lines that came into sight; those that stay are left as they are, under the pointer too. */
    fill() {
      const [first, last] = this.window;
      const [from, to] = [Math.max(0, first - SPARE), Math.min(this.lines.length, last + SPARE)];
      this.drawnLines = [from, to];
      const before = this.rows;
      this.rows = new Map();
      for (let line = from; line < to; line++) this.rows.set(line, before.get(line) || this.line(line));
      const kept = [...this.rows.values()];
      if (kept.length !== this.inner.children.length || kept.some((row, at) => row !== this.inner.children[at])) {
        for (const row of [...this.inner.children]) if (!kept.includes(row)) row.remove();
        kept.forEach((row, at) => row !== this.inner.children[at] && this.inner.insertBefore(row, this.inner.children[at] || null));
      }
      this.mark();
    }
    /** Text of a token; a blank in front is not shown where a line was broken. */
    word(i) {
      return this.wrapped.has(i) ? this.words[i].replace(/^ +(?=\S)/, "") : this.words[i];
    }
    wide(i) {
      return this.widths[i] - (this.wrapped.has(i) ? (this.words[i].length - this.word(i).length) * this.blank : 0);
    }
    line(line) {
      const [from, to] = this.lines[line];
      const row = el("div", { class: "hs-line" });
      row.style.transform = `translateY(${PAD + line * LINE}px)`;
      for (let i = from; i < to; i++) row.append(this.span(i));
      return row;
    }
    span(i) {
      const { panel, viewer } = this;
      const { meta } = viewer;
      const span = el("span", { class: "hs-t", text: this.word(i), data: { i } });
      if (panel.values && panel.subject !== null) {
        if (!panel.reaches(i)) span.classList.add("hs-unseen");
        else {
          const share = panel.share(panel.values[i]);
          if (share > 0.004) span.style.setProperty("--w", share.toFixed(3));
        }
      }
      if (i >= meta.prompt_length) span.classList.add("hs-generated");
      const [region] = viewer.regionsAt(i);
      if (region) {
        span.classList.add("hs-region");
        span.style.setProperty("--region", viewer.theme.regions[region.colour]);
      }
      return span;
    }
    /** Outline the chosen pair and the pair under the pointer. */
    mark() {
      const { store, hover, key } = this.viewer;
      for (const span of this.inner.querySelectorAll(".hs-t")) {
        const i = Number(span.dataset.i);
        span.classList.toggle("hs-query", i === store.query);
        span.classList.toggle("hs-key", i === key);
        span.classList.toggle("hs-lit", i === hover.query || i === hover.key);
      }
    }

    /** Scroll until a token is in sight. */
    reveal(i, force) {
      if (i === null || !this.lines.length) return;
      const y = PAD + this.lineOf[i] * LINE;
      const { scrollTop, clientHeight } = this.element;
      if (!force && y >= scrollTop + LINE && y + 2 * LINE <= scrollTop + clientHeight) return;
      const above = Math.max(0, Math.round((y - clientHeight / 2) / LINE));
      this.element.scrollTop = above && above * LINE + PAD;
      this.draw();
    }
    /** First and last token in sight. */
    get sight() {
      const [first, last] = this.window;
      return this.lines.length ? [this.lines[first]?.[0] ?? 0, this.lines[Math.max(last - 1, 0)]?.[1] ?? 0] : [0, 0];
    }

    paint(pen, x0, y0) {
      const { theme } = this.viewer;
      const [first, last] = this.window;
      for (let line = first; line < last; line++) {
        let x = x0;
        const y = y0 + (line - first) * LINE + LINE / 2;
        for (let i = this.lines[line][0]; i < this.lines[line][1]; i++) {
          const reached = this.panel.values && this.panel.reaches(i);
          const share = reached ? this.panel.share(this.panel.values[i]) : 0;
          if (share > 0.004) pen.rect(x, y - 9, this.wide(i), 18, theme.heat, { opacity: share });
          if (i === this.viewer.store.query) pen.rect(x, y - 9, this.wide(i), 18, null, { stroke: theme.accent });
          if (i === this.viewer.key) pen.rect(x, y - 9, this.wide(i), 18, null, { stroke: theme.warm });
          pen.text(x, y, this.word(i), { size: parseFloat(getComputedStyle(this.inner).fontSize), fill: reached ? theme.ink : theme.soft });
          x += this.wide(i);
        }
      }
    }
  }
  parts.Flow = Flow;
})();
