/* Put a viewer into an element: panels around one state, one source, one pointer. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  let viewers = 0;

  /** Small label at the pointer: a heading, then names with values. */
  class Tip {
    constructor() {
      this.element = el("div", { class: "hs-tip", role: "presentation", hidden: true });
    }
    show(event, facts) {
      this.element.replaceChildren(...facts.map(([name, value], i) => el("div", { class: i ? "" : "hs-tip-title" }, el("span", { text: name }), value === undefined ? null : el("b", { text: value }))));
      this.element.hidden = false;
      this.move(event);
    }
    move(event) {
      const { offsetWidth: w, offsetHeight: h } = this.element;
      const x = event.clientX + 14 + w > innerWidth ? event.clientX - w - 12 : event.clientX + 14;
      const y = event.clientY + 16 + h > innerHeight ? event.clientY - h - 12 : event.clientY + 16;
      this.element.style.transform = `translate(${Math.max(x, 2)}px, ${Math.max(y, 2)}px)`;
    }
    hide() {
      this.element.hidden = true;
    }
  }

  class Viewer {
    constructor(element, source, options) {
      this.id = `headscope-${++viewers}`;
      this.host = element;
      this.options = options;
      this.data = new parts.Data(source);
      this.hover = new parts.Hover();
      this.tip = new Tip();
      this.asked = { ...options.state };
      this.stops = [];
      this.element = el("div", { class: "hs-viewer", role: "region", "aria-label": "Attention viewer", data: { state: "loading" } });
      if (options.theme === "light" || options.theme === "dark") document.documentElement.setAttribute("data-mantine-color-scheme", options.theme);
      element.replaceChildren(this.element);
      const activate = () => (parts.active = this);
      this.element.addEventListener("pointerenter", activate);
      this.element.addEventListener("focusin", activate);
      parts.active = parts.active || this;
      this.start();
    }

    async start() {
      const slow = setTimeout(() => this.element.replaceChildren(el("p", { class: "hs-waiting", text: "Opening the run …" })), 150);
      try {
        this.meta = await this.data.meta();
      } catch (error) {
        if (!this.gone) this.fail(error);
        return;
      } finally {
        clearTimeout(slow);
      }
      if (!this.gone) this.build();
    }
    fail(error) {
      this.element.dataset.state = "error";
      const again = el("button", { type: "button", class: "hs-button", text: "Retry", on: { click: () => this.start() } });
      this.element.replaceChildren(el("div", { class: "hs-trouble", role: "alert" }, el("p", { text: error.message || String(error) }), again));
    }

    build() {
      const { meta } = this;
      this.store = new parts.Store(meta, this.asked, this.options.onState);
      this.theme = parts.readTheme(this.element);
      this.regions = Object.entries(meta.regions || {}).map(([name, runs], i) => ({ name, runs, colour: i % 6 }));
      this.best = null;
      this.model = new parts.ModelPanel(this);
      this.head = new parts.HeadPanel(this);
      this.text = new parts.TextPanel(this);
      this.neuron = new parts.NeuronPanel(this);
      this.panels = [this.model, this.head, this.text, this.neuron];
      this.search = new parts.Search(this);
      this.help = parts.keyList();
      this.live = el("div", { class: "hs-live", role: "status", "aria-live": "polite" });
      this.element.replaceChildren(this.bar(), ...this.panels.map((panel) => panel.element), this.live, this.help, this.tip.element);
      this.store.watch((changed) => this.follow(changed));
      this.stops.push(parts.bindKeys(this), parts.watchTheme(() => this.themed()));
      this.sizes = new ResizeObserver(() => this.resize());
      this.sizes.observe(this.element);
      for (const box of [this.head.stage, this.model.body, this.text.flow.element, this.neuron.stage]) this.sizes.observe(box);
      parts.splits(this);
      this.resize();
      this.head.arrange();
      this.model.refresh();
      this.text.refresh();
      this.findBest();
      this.element.dataset.state = "ready";
    }
    bar() {
      const { meta } = this;
      const generated = meta.length - meta.prompt_length;
      const words = `${meta.length.toLocaleString("en")} tokens${generated ? `, ${generated} of them generated` : ""}`;
      const names = this.regions.map(({ name, runs, colour }) => {
        const chip = el("button", { type: "button", class: "hs-region-name", title: `Go to the region ${name}`, text: name, on: { click: () => this.select(runs[0][1] - 1) } });
        chip.style.setProperty("--region", this.theme.regions[colour]);
        return chip;
      });
      this.chips = names;
      const keys = el("button", { type: "button", class: "hs-button", "aria-label": "Keys", title: "List of keys (?)", text: "?", on: { click: () => this.help.showModal() } });
      return el("div", { class: "hs-bar" }, el("span", { class: "hs-model-name" }, el("b", { text: meta.model }), el("span", { class: "hs-soft", text: ` ${words}` })), el("span", { class: "hs-region-names" }, ...names), this.search.element, keys);
    }

    /** Key in force: the chosen one, else the one that the query attends to most, once its row is known. */
    get key() {
      return this.store.state.key ?? this.best;
    }
    /** Whether the mask of a layer lets a query see a key. */
    sees(layer, query, key) {
      if (!this.meta.causal[layer]) return true;
      const window = this.meta.window[layer];
      return key <= query && !(window && query - key >= window);
    }
    regionsAt(i) {
      return this.regions.filter(({ runs }) => runs.some(([start, end]) => i >= start && i < end));
    }

    follow(changed) {
      if (["layer", "head", "query", "wrote"].some((name) => changed.has(name))) this.findBest();
      else if (changed.has("key") || changed.has("side")) this.paired();
    }
    async findBest() {
      const { layer, head } = this.store.state;
      const { query } = this.store;
      const now = this.data.rowNow(layer, head, query);
      const use = (row) => {
        this.best = parts.largest(row);
        this.paired();
      };
      if (now) {
        use(now);
        return;
      }
      if (this.store.state.key !== null) this.paired();
      try {
        const row = await this.data.row(layer, head, query);
        const { state } = this.store;
        if (!this.gone && state.layer === layer && state.head === head && this.store.query === query) use(row);
      } catch {
        /* the text panel, which shows this row, tells the error; without the row there is no pair to show */
        if (!this.gone && this.store.state.key === null) {
          this.best = null;
          this.neuron.clear();
          this.neuron.mark("error");
        }
      }
    }
    /** The pair is another. */
    paired() {
      this.neuron.refresh();
      if (this.store.state.side === "column") this.text.refresh();
      this.text.light();
      this.head.draw();
    }

    /** Choose a token as query and bring it into sight. */
    select(i) {
      this.store.set({ query: i, wrote: false });
      this.text.flow.reveal(i, true);
    }
    /** The map is being moved: colours keep their range until it rests. */
    touch() {
      this.moving = true;
      clearTimeout(this.rested);
      this.rested = setTimeout(() => {
        this.moving = false;
        this.head.draw();
      }, 110);
    }
    /** Nothing is waited for: fetch what is likely to be asked next. */
    quiet() {
      clearTimeout(this.idle);
      this.idle = setTimeout(() => {
        const { layer, head, reduce } = this.store.state;
        const { query } = this.store;
        const { heads, levels } = this.meta;
        const near = [[layer, head + 1], [layer, head - 1], [layer + 1, head], [layer - 1, head]].filter(([l, h]) => h >= 0 && h < (heads[l] || 0));
        const work = async () => {
          for (const [l, h] of near) {
            if (this.gone || this.store.state.layer !== layer || this.store.state.head !== head) return;
            if (!this.head.tiles.flying.size) await this.head.tiles.ahead({ layer: l, head: h, level: levels - 1, row: 0, col: 0, reduce });
            await this.data.row(l, h, query).catch(() => null);
          }
        };
        (window.requestIdleCallback || setTimeout)(work);
      }, 400);
    }

    /** Say something to who listens instead of looking. */
    say(words) {
      this.live.textContent = words;
    }
    announce() {
      const { state } = this.store;
      const { tokens } = this.meta;
      const { best, values, subject } = this.text;
      const list = best.slice(0, 3).map((i) => `${tokens[i].trim() || "space"} at ${i}, ${parts.number(values[i], 2)}`).join("; ");
      this.say(`Layer ${state.layer}, head ${state.head}. ${tokens[subject].trim()} at ${subject} ${state.side === "row" ? "attends to" : "is attended by"} ${list || "nothing"}.`);
    }

    themed() {
      this.theme = parts.readTheme(this.element);
      this.chips.forEach((chip, i) => chip.style.setProperty("--region", this.theme.regions[this.regions[i].colour]));
      for (const panel of this.panels) panel.themed();
    }
    resize() {
      const wide = this.element.clientWidth;
      this.element.classList.toggle("hs-two", wide <= 1100 && wide > 640);
      this.element.classList.toggle("hs-one", wide <= 640);
      this.model.layout();
      this.head.resize();
      this.text.resize();
      this.neuron.resize();
    }
    focus() {
      this.model.grid.focus({ preventScroll: true });
    }
    destroy() {
      this.gone = true;
      if (this.sizes) this.sizes.disconnect();
      for (const stop of this.stops) stop();
      clearTimeout(this.idle);
      clearTimeout(this.rested);
      if (this.store) this.store.tell.cancel();
      if (this.head) this.head.destroy();
      this.data.destroy();
      this.element.remove();
      if (parts.active === this) parts.active = null;
    }
  }

  /**
   * Show a run in an element.
   * @param {Element} element - it is filled; give it a height
   * @param {Object} source - `Headscope.http(base)`, `Headscope.embedded(data)` or anything with their methods
   * @param {{state?: Object, onState?: (state: Object) => void, theme?: "light"|"dark"|"auto"}} [options]
   */
  Headscope.mount = (element, source, options = {}) => {
    const viewer = new Viewer(element, source, options);
    return {
      /** Change part of the state; what is unknown or out of range is clamped. */
      setState: (partial) => {
        if (viewer.store) viewer.store.set(partial);
        else Object.assign(viewer.asked, partial);
      },
      /** The whole state, as plain data. */
      getState: () => (viewer.store ? viewer.store.get() : { ...parts.DEFAULTS, ...viewer.asked }),
      focusSearch: () => viewer.search && viewer.search.focus(),
      destroy: () => viewer.destroy(),
      /** What is drawn, as numbers: for tests. */
      debug: () => viewer.store && { state: viewer.store.get(), query: viewer.store.query, key: viewer.key, hover: { query: viewer.hover.query, key: viewer.hover.key }, ...Object.fromEntries(viewer.panels.map((panel) => [panel.name, panel.debug()])) },
    };
  };
})();
