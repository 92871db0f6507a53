/* Neuron view: how one query and one key make one weight, dimension by dimension. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const LEFT = 84;
  const RIGHT = 10;
  const ROWS = [["q", "query q", 0.2], ["k", "key k", 0.2], ["product", "q · k · scale", 0.28], ["sum", "running sum", 0.32]];

  class NeuronPanel extends parts.Panel {
    constructor(viewer) {
      super(viewer, "neuron", "Neuron");
      this.values = null;
      this.at = null;
      this.sorted = false;
      this.order = parts.segmented("Order of dimensions", [["index", "by index", "Dimensions in the order of the head"], ["size", "by size", "Largest products first"]], (order) => {
        this.sorted = order === "size";
        this.arrange();
      });
      this.order.show("index");
      this.tools.append(this.order.element);
      this.canvas = el("canvas", { role: "img", "aria-label": "No pair is chosen" });
      this.stage = el("div", { class: "hs-neurons" }, this.canvas);
      this.facts = el("dl", { class: "hs-facts" });
      this.note = el("p", { class: "hs-note", hidden: true });
      this.body.append(this.stage, el("div", { class: "hs-sum" }, this.facts, this.note));
      this.draw = parts.perFrame(() => this.paintAll());
      this.stage.addEventListener("pointermove", (event) => this.hover(event));
      this.stage.addEventListener("pointerleave", () => this.hover(null));
    }

    /** Show a pair; asked for by the viewer whenever the pair is another. */
    refresh() {
      const { store, data, key, meta } = this.viewer;
      if (key === null) return;
      const { layer, head } = store.state;
      const { query } = store;
      const asked = `${layer} ${head} ${query} ${key}`;
      if (asked === this.asked && this.values) return;
      this.asked = asked;
      this.heading.replaceChildren("Neuron ", el("span", { class: "hs-pair" }, el("span", { class: "hs-query", text: `${parts.quote(meta.tokens[query], 16)} ${query}` }), " → ", el("span", { class: "hs-key", text: `${parts.quote(meta.tokens[key], 16)} ${key}` })));
      this.load(() => data.neuron(layer, head, query, key).catch((error) => {
        this.clear();
        throw error;
      }), (values) => {
        this.values = values;
        this.arrange();
        this.write();
      });
    }
    clear() {
      this.values = this.asked = null;
      this.facts.replaceChildren();
      this.note.hidden = true;
      this.draw();
    }
    arrange() {
      this.order.show(this.sorted ? "size" : "index");
      if (!this.values) return;
      const { product } = this.values;
      this.dims = product.map((_, d) => d);
      if (this.sorted) this.dims.sort((a, b) => Math.abs(product[b]) - Math.abs(product[a]));
      let sum = 0;
      this.sum = this.dims.map((d) => (sum += product[d]));
      this.draw();
    }
    write() {
      const v = this.values;
      const { number } = parts;
      const facts = [["Σ q·k · scale", number(v.raw)], ["scale", number(v.scale)]];
      if (v.softcap !== null && v.softcap !== undefined) facts.push(["soft cap", number(v.softcap, 1)]);
      if (v.bias) facts.push(["bias", number(v.bias)]);
      facts.push(["logit", v.visible === false ? "masked" : number(v.logit)], ["log-normaliser", number(v.lse)], ["weight", number(v.weight)]);
      this.facts.replaceChildren(...facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value, data: { fact: name } })]));
      const notes = [];
      if (v.note) notes.push(v.note);
      else if (v.visible === false) notes.push("Masked: this query cannot see this key.");
      if (v.rotary) this.facts.title = "q and k after the rotary position embedding";
      this.note.textContent = notes.join(" ");
      this.note.hidden = !notes.length;
      this.canvas.setAttribute("aria-label", `${v.product.length} dimensions of query and key; the products add up to ${number(v.raw)}, weight ${number(v.weight)}`);
    }

    get geometry() {
      const [w, h] = [this.stage.clientWidth, this.stage.clientHeight];
      const n = this.values.product.length;
      let y = 6;
      const room = h - 12 - 3 * 8;
      const rows = ROWS.map(([name, label, part]) => {
        const row = { name, label, y, h: room * part };
        y += row.h + 8;
        return row;
      });
      return { w, h, n, step: (w - LEFT - RIGHT) / n, rows };
    }
    paintAll() {
      const [w, h] = [this.stage.clientWidth, this.stage.clientHeight];
      if (!w || !h) return;
      const context = parts.fit(this.canvas, w, h);
      context.clearRect(0, 0, w, h);
      if (this.values) this.paint(new parts.CanvasPen(context, this.viewer.theme));
    }
    paint(pen) {
      const { theme } = this.viewer;
      const { n, step, rows } = this.geometry;
      const v = this.values;
      const shared = Math.max(...v.q.map(Math.abs), ...v.k.map(Math.abs), 1e-9);
      for (const row of rows) {
        pen.text(0, row.y + row.h / 2, row.label, { fill: theme.soft, size: 10 });
        if (row.name === "sum") {
          this.paintSum(pen, row, step);
          continue;
        }
        const values = v[row.name];
        const most = row.name === "product" ? Math.max(...values.map(Math.abs), 1e-9) : shared;
        const zero = row.y + row.h / 2;
        pen.line([[LEFT, zero], [LEFT + n * step, zero]], theme.line);
        this.dims.forEach((d, place) => {
          const tall = (values[d] / most) * (row.h / 2);
          const colour = values[d] < 0 ? theme.divergingAt(0.08) : theme.divergingAt(0.92);
          pen.rect(LEFT + place * step + 0.5, Math.min(zero, zero - tall), Math.max(step - 1, 0.8), Math.abs(tall), colour);
        });
        pen.text(LEFT - 5, row.y + 4, parts.tick(Number(most.toPrecision(2))), { fill: theme.soft, size: 9, anchor: "end" });
        pen.text(LEFT - 5, row.y + row.h - 4, parts.tick(-Number(most.toPrecision(2))), { fill: theme.soft, size: 9, anchor: "end" });
      }
      if (this.at !== null) {
        const x = LEFT + (this.at + 0.5) * step;
        pen.line([[x, rows[0].y], [x, rows[3].y + rows[3].h]], theme.ink, { opacity: 0.5, dash: [2, 2] });
      }
    }
    paintSum(pen, row, step) {
      const { theme } = this.viewer;
      const [low, high] = [Math.min(0, ...this.sum), Math.max(0, ...this.sum)];
      const range = high - low || 1;
      const y = (value) => row.y + 4 + ((high - value) / range) * (row.h - 8);
      const n = this.sum.length;
      pen.line([[LEFT, y(0)], [LEFT + n * step, y(0)]], theme.line);
      const points = [[LEFT, y(0)], ...this.sum.map((value, place) => [LEFT + (place + 1) * step, y(value)])];
      pen.area([...points, [LEFT + n * step, y(0)]], theme.accent, { opacity: 0.12 });
      pen.line(points, theme.accent, { width: 1.5 });
      const last = this.sum[n - 1];
      pen.circle(LEFT + n * step, y(last), 3, theme.accent);
      pen.text(LEFT + n * step - 6, parts.clamp(y(last) + (y(last) > row.y + row.h / 2 ? -9 : 9), row.y + 4, row.y + row.h - 3), parts.number(last, 2), { size: 11, weight: 700, anchor: "end" });
      pen.text(LEFT - 5, row.y + 5, parts.tick(Number(high.toPrecision(2))), { fill: theme.soft, size: 9, anchor: "end" });
      if (low < 0) pen.text(LEFT - 5, row.y + row.h - 5, parts.tick(Number(low.toPrecision(2))), { fill: theme.soft, size: 9, anchor: "end" });
    }

    hover(event) {
      let at = null;
      if (event && this.values) {
        const { n, step } = this.geometry;
        const place = Math.floor((event.clientX - this.stage.getBoundingClientRect().left - LEFT) / step);
        if (place >= 0 && place < n) at = place;
      }
      if (at === null) this.viewer.tip.hide();
      else {
        const d = this.dims[at];
        const { q, k, product } = this.values;
        this.viewer.tip.show(event, [[`Dimension ${d}`], ["q", parts.number(q[d])], ["k", parts.number(k[d])], ["q · k · scale", parts.number(product[d])], ["sum to here", parts.number(this.sum[at])]]);
      }
      if (at === this.at) return;
      this.at = at;
      this.draw();
    }

    resize() {
      this.draw();
    }
    themed() {
      this.draw();
    }
    picture() {
      const { w, h } = this.geometry;
      return { width: w + 190, height: h + 26, paint: (pen) => {
        pen.text(8, 12, this.heading.textContent, { size: 12, weight: 600 });
        this.shifted(pen, () => this.paint(pen));
        [...this.facts.querySelectorAll("dt")].forEach((term, i) => {
          pen.text(w + 16, 38 + i * 17, term.textContent, { fill: this.viewer.theme.soft });
          pen.text(w + 182, 38 + i * 17, term.nextSibling.textContent, { anchor: "end" });
        });
      } };
    }
    /** Draw lower, so that the heading has room. */
    shifted(pen, work) {
      if (pen.context) {
        pen.context.save();
        pen.context.translate(8, 24);
        work();
        pen.context.restore();
      } else {
        pen.put('<g transform="translate(8 24)">');
        work();
        pen.put("</g>");
      }
    }
    table() {
      const { q, k, product } = this.values;
      let sum = 0;
      return [["dimension", "q", "k", "product", "running_sum"], ...product.map((value, d) => [d, q[d], k[d], value, (sum += value)])];
    }
    fileName() {
      return `${super.fileName()}-${this.viewer.store.query}-${this.viewer.key}`;
    }
    debug() {
      const v = this.values;
      return v && { query: this.viewer.store.query, key: this.viewer.key, raw: v.raw, logit: v.logit, lse: v.lse, weight: v.weight, visible: v.visible, sum: this.sum.at(-1), hover: this.at === null ? null : this.dims[this.at] };
    }
  }
  parts.NeuronPanel = NeuronPanel;
})();
