/* Row and column: the text of the prompt in place, every token shaded by attention, with the ten best and what is left. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const BEST = 10;

  class TextPanel extends parts.Panel {
    constructor(viewer) {
      super(viewer, "text", "Text");
      const { store } = viewer;
      this.values = null;
      this.subject = null;
      this.side = parts.segmented("Direction", [["row", "attends to", "What the chosen query attends to"], ["column", "attended by", "Which queries attend to the chosen key"]], (side) => this.turnTo(side));
      this.wrote = el("input", { type: "checkbox", id: `${viewer.id}-wrote`, on: { change: () => store.set({ wrote: this.wrote.checked }) } });
      this.wroteRow = el("label", { class: "hs-wrote", for: this.wrote.id, hidden: true, title: "A token is written by the row before it: the query at position − 1 reads the context and predicts this token. Off, you see the token's own row, which writes the next one." }, this.wrote, "row that wrote it");
      this.tools.append(this.side.element);
      this.subjectLine = el("p", { class: "hs-subject" });
      this.strip = new parts.Strip(this);
      this.flow = new parts.Flow(this);
      this.list = el("ol", { class: "hs-list" });
      this.left = el("p", { class: "hs-left" });
      this.body.append(el("div", { class: "hs-subject-row" }, this.subjectLine, this.wroteRow), this.strip.element, this.flow.element, el("div", { class: "hs-best-keys" }, this.list, this.left));
      store.watch((changed) => {
        if (["layer", "head", "query", "key", "side", "wrote"].some((name) => changed.has(name))) this.refresh(changed);
        if (changed.has("scale")) this.shade();
      });
      viewer.hover.watch(() => this.light());
    }

    /** Turn around; a key that was not chosen is then the token that was in view. */
    turnTo(side) {
      const { store } = this.viewer;
      store.set(side === "column" && store.state.key === null ? { side, key: store.query } : { side });
    }
    refresh(changed) {
      const { store, data, meta } = this.viewer;
      const { layer, head, side, query, wrote } = store.state;
      const row = side === "row";
      this.side.show(side);
      this.wroteRow.hidden = !row || query < meta.prompt_length;
      this.wrote.checked = wrote;
      const subject = row ? store.query : this.viewer.key;
      if (subject === null) return; // the best key is not known before its row
      const same = this.asked === `${layer} ${head} ${side} ${subject}`;
      this.asked = `${layer} ${head} ${side} ${subject}`;
      this.subject = subject;
      this.describe();
      if (same && this.values) {
        this.shade();
        return;
      }
      this.load(() => (row ? data.row(layer, head, subject) : data.column(layer, head, subject)).catch((error) => {
        this.clear();
        throw error;
      }), (values) => {
        this.values = values;
        this.best = parts.top(values, BEST);
        this.shade();
        this.write();
        if (!changed || changed.has("query") || changed.has("key") || changed.has("side")) this.flow.reveal(this.subject);
        this.viewer.announce();
        if (row && this.viewer.best === null) this.viewer.findBest();
      });
    }
    /** What was shown belongs to another head or token. */
    clear() {
      this.values = this.best = null;
      this.list.replaceChildren();
      this.left.textContent = "";
      this.shade();
    }
    describe() {
      const { store, meta } = this.viewer;
      const row = store.state.side === "row";
      const wrote = row && this.subject !== store.state.query;
      this.subjectLine.replaceChildren(
        el("b", { class: row ? "hs-query" : "hs-key", text: parts.quote(meta.tokens[this.subject], 26) }), ` ${this.subject} `,
        el("span", { class: "hs-soft", text: row ? (wrote ? `attends to (the row that wrote ${parts.quote(meta.tokens[store.state.query], 14)} ${store.state.query})` : "attends to") : "is attended by" }),
      );
    }

    /** Share of the shade that a token gets. */
    shareOf() {
      const top = this.best && this.best.length ? this.values[this.best[0]] : 1;
      return parts.transfer(this.viewer.store.state.scale, top);
    }
    shade() {
      this.share = this.values ? this.shareOf() : () => 0;
      this.flow.shade();
      this.strip.draw();
    }
    /** Whether the subject's row or column reaches a token at all. */
    reaches(i) {
      const { store } = this.viewer;
      return store.state.side === "row" ? this.viewer.sees(store.state.layer, this.subject, i) : this.viewer.sees(store.state.layer, i, this.subject);
    }

    write() {
      const { meta, store } = this.viewer;
      const { values, best } = this;
      const row = store.state.side === "row";
      const text = (from, to) => parts.readable(meta.tokens.slice(Math.max(0, from), to).join(""));
      const around = (i) => [text(i - 3, i).slice(-14), text(i + 1, i + 4).slice(0, 14)];
      this.list.replaceChildren(...best.map((i) => {
        const [before, after] = around(i);
        const button = el("button", { type: "button", class: "hs-entry", data: { i }, title: row ? "Choose as key; Shift: as query" : "Choose as query; Shift: as key" },
          el("span", { class: "hs-where", text: String(i) }),
          el("span", { class: "hs-context" }, el("span", { class: "hs-soft", text: before }), el("b", { text: text(i, i + 1) }), el("span", { class: "hs-soft", text: after })),
          el("span", { class: "hs-weight", text: parts.number(values[i]) }));
        button.style.setProperty("--w", values[i] / values[best[0]]);
        button.addEventListener("click", (event) => this.pick(i, event, !row));
        button.addEventListener("pointerenter", () => this.hoverAt(i));
        button.addEventListener("pointerleave", () => this.viewer.hover.clear("text"));
        button.addEventListener("focus", () => this.hoverAt(i));
        button.addEventListener("blur", () => this.viewer.hover.clear("text"));
        return el("li", {}, button);
      }));
      let total = 0;
      for (const v of values) total += v;
      const listed = best.reduce((sum, i) => sum + values[i], 0);
      const others = Array.from(values).reduce((n, v) => n + (v > 0), 0) - best.length;
      const left = [`${parts.number(Math.max(total - listed, 0))} on ${others.toLocaleString("en")} other tokens`];
      if (row && meta.sinks[store.state.layer]) left.push(`${parts.number(Math.max(1 - total, 0))} on no token (the layer's own sink)`);
      if (!row) left.push(`${parts.number(total)} received in all`);
      this.left.textContent = left.join(" · ");
    }

    hoverAt(i) {
      const row = this.viewer.store.state.side === "row";
      this.viewer.hover.set(row ? this.subject : i, row ? i : this.subject, "text");
    }
    /** Choose a token: as query, or as key. */
    pick(i, event, query) {
      const other = event.shiftKey || event.altKey;
      this.viewer.store.set(other !== query ? { query: i, wrote: false } : { key: i });
    }
    /** Light the tokens under the pointer. */
    light() {
      const { hover } = this.viewer;
      for (const button of this.list.querySelectorAll(".hs-entry")) {
        const i = Number(button.dataset.i);
        button.classList.toggle("hs-lit", i === (this.viewer.store.state.side === "row" ? hover.key : hover.query));
      }
      this.flow.mark();
      this.strip.drawOver();
    }

    resize() {
      this.flow.resize();
      this.strip.draw();
    }
    themed() {
      this.flow.shade();
      this.strip.draw();
    }
    picture() {
      const { width } = this.flow;
      const height = 62 + this.flow.viewHeight + BEST * 18 + 30;
      return { width: width + 16, height, paint: (pen) => {
        pen.text(8, 14, this.subjectLine.textContent, { size: 12, weight: 600 });
        this.strip.paint(pen, 8, 26, width, 20);
        this.flow.paint(pen, 8, 54);
        let y = 70 + this.flow.viewHeight;
        for (const i of this.best || []) {
          pen.text(40, y, String(i), { anchor: "end", fill: this.viewer.theme.soft });
          pen.text(50, y, parts.label(this.viewer.meta.tokens[i], 30));
          pen.text(width, y, parts.number(this.values[i]), { anchor: "end" });
          y += 18;
        }
        pen.text(8, y, this.left.textContent, { fill: this.viewer.theme.soft });
      } };
    }
    table() {
      const row = this.viewer.store.state.side === "row";
      return [[row ? "key" : "query", "token", "weight"], ...Array.from(this.values || [], (v, i) => [i, this.viewer.meta.tokens[i], v]).filter(([i]) => this.reaches(i))];
    }
    fileName() {
      return `${super.fileName()}-${this.viewer.store.state.side}-${this.subject}`;
    }
    debug() {
      return { side: this.viewer.store.state.side, subject: this.subject, top: (this.best || []).map((i) => [i, this.values[i]]), lines: this.flow.lines.length, drawn: this.flow.drawnLines, spans: this.flow.inner.querySelectorAll(".hs-t").length };
    }
  }
  parts.TextPanel = TextPanel;
})();
