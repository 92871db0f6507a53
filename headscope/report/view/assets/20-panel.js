/* A panel: its heading, tools, place for errors and waiting, and its exports. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const SLOW = 150;

  function save(name, content, type) {
    const link = el("a", { href: URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type })), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  /** Rows as CSV text, the first row being names. */
  parts.csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";

  /**
   * One panel of the viewer. A kind of panel gives `picture()` → {width, height, paint(pen)}, `table()` → rows, and `fileName()`.
   */
  class Panel {
    constructor(viewer, name, title) {
      this.viewer = viewer;
      this.name = name;
      this.turn = 0;
      this.heading = el("h2", { class: "hs-title", id: `${viewer.id}-${name}` }, title);
      this.tools = el("div", { class: "hs-tools" });
      this.body = el("div", { class: "hs-body" });
      this.trouble = el("div", { class: "hs-trouble", role: "alert", hidden: true });
      this.busy = el("div", { class: "hs-busy", hidden: true, "aria-hidden": "true" });
      const head = el("header", { class: "hs-head" }, this.heading, this.tools, this.exports());
      this.element = el("section", { class: `hs-panel hs-panel-${name}`, "aria-labelledby": this.heading.id, data: { panel: name, state: "loading" } }, head, this.busy, this.body, this.trouble);
    }

    /** Get something, then show it. What was asked before and comes later is dropped. */
    async load(make, show) {
      const turn = ++this.turn;
      this.mark("loading");
      clearTimeout(this.slow);
      this.slow = setTimeout(() => (this.busy.hidden = false), SLOW);
      try {
        const got = await make();
        if (turn !== this.turn) return;
        show(got);
        this.trouble.hidden = true;
        this.mark("ready");
      } catch (error) {
        if (turn === this.turn && error.name !== "AbortError") this.fail(error, () => this.load(make, show));
      } finally {
        if (turn === this.turn) this.rest();
      }
    }
    rest() {
      clearTimeout(this.slow);
      this.busy.hidden = true;
    }
    mark(state) {
      this.element.dataset.state = state;
      this.element.setAttribute("aria-busy", String(state === "loading"));
    }
    fail(error, retry) {
      this.mark("error");
      const again = el("button", { type: "button", class: "hs-button", text: "Retry", on: { click: () => {
        this.trouble.hidden = true;
        retry();
      } } });
      // What will be no different the next time is not tried again.
      this.trouble.replaceChildren(el("p", {}, error.message || String(error)), ...(error.final ? [] : [again]));
      this.trouble.hidden = false;
    }

    exports() {
      const menu = el("details", { class: "hs-menu" });
      const choose = (label, about, work) => el("button", { type: "button", class: "hs-item", text: label, title: about, on: { click: () => {
        menu.open = false;
        try {
          work();
        } catch (error) {
          this.viewer.say(`Nothing was saved: ${error.message}`);
        }
      } } });
      menu.append(
        el("summary", { text: "⤓", title: "Save as PNG, SVG or CSV", "aria-label": `Save the ${this.name} panel` }),
        el("div", { class: "hs-menu-list" },
          choose("PNG", "Picture, at twice the size of the screen", () => this.savePng()),
          choose("SVG", "Vector graphic", () => save(`${this.fileName()}.svg`, this.svg(), "image/svg+xml")),
          choose("CSV", "The numbers that are shown", () => save(`${this.fileName()}.csv`, parts.csv(this.table()), "text/csv")),
        ),
      );
      menu.addEventListener("focusout", (event) => {
        if (!menu.contains(event.relatedTarget)) menu.open = false;
      });
      menu.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || !menu.open) return;
        event.stopPropagation();
        menu.open = false;
        menu.firstChild.focus();
      });
      return menu;
    }
    svg() {
      const { width, height, paint } = this.picture();
      const pen = new parts.SvgPen(width, height, this.viewer.theme);
      paint(pen);
      return String(pen);
    }
    savePng() {
      const { width, height, paint } = this.picture();
      const canvas = el("canvas");
      [canvas.width, canvas.height] = [Math.round(width * 2), Math.round(height * 2)];
      const context = canvas.getContext("2d");
      context.scale(2, 2);
      const pen = new parts.CanvasPen(context, this.viewer.theme);
      pen.rect(0, 0, width, height, this.viewer.theme.panel);
      paint(pen);
      canvas.toBlob((blob) => save(`${this.fileName()}.png`, blob, "image/png"));
    }
    fileName() {
      const { layer, head } = this.viewer.store.state;
      return `${this.viewer.meta.model}-${this.name}-${layer}.${head}`.replace(/[^\w.-]+/g, "_");
    }
  }
  parts.Panel = Panel;
})();
