/* Keys: bound once to the document, silent while somebody types, gone with the viewer. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;

  const LIST = [
    ["← →", "head before, head after"],
    ["↑ ↓", "layer before, layer after"],
    ["[  ]", "query: token before, token after"],
    ["{  }", "key: token before, token after"],
    ["m", "kind of head view: auto, lines, tokens, map"],
    ["t", "heads as patterns or as numbers"],
    ["r", "blocks show their maximum or their mean"],
    ["s", "colour scale: linear, root, logarithm"],
    ["a", "text: attends to, attended by"],
    ["+  −  0", "zoom in, zoom out, everything"],
    ["Shift ← ↑ ↓ →", "move the map"],
    ["/", "find in the text; Enter goes there"],
    ["n  N", "next place, place before"],
    ["?", "this list"],
    ["Esc", "close, leave"],
  ];
  const MOUSE = [
    ["click", "map: choose the pair; text: choose the query"],
    ["Shift or Alt click", "choose the key"],
    ["wheel, drag, double click", "zoom and move the map"],
  ];

  const cycle = (options, value) => options[(options.indexOf(value) + 1) % options.length];
  const writes = (target) => target.closest && target.closest("input:not([type=checkbox]):not([type=radio]):not([type=button]), textarea, select, [contenteditable=''], [contenteditable=true]");
  // What uses arrow keys for itself, outside the viewer.
  const steers = (target) => target.closest && target.closest("[role=slider], [role=radiogroup], [role=tablist], [role=menu], [role=grid], [role=treegrid], [role=listbox], [role=combobox], input[type=radio]");

  /** Bind the keys of a viewer. Returns what unbinds them. */
  parts.bindKeys = (viewer) => {
    const { store, head, search } = viewer;
    const step = (name, by) => store.set({ [name]: (name === "key" ? (viewer.key ?? store.query) : store.state[name]) + by });
    const layer = (by) => {
      const { heads } = viewer.meta;
      let next = store.state.layer + by;
      while (heads[next] === 0) next += by;
      if (heads[next]) store.set({ layer: next });
    };
    const plain = {
      ArrowLeft: () => step("head", -1),
      ArrowRight: () => step("head", 1),
      ArrowUp: () => layer(-1),
      ArrowDown: () => layer(1),
      "[": () => step("query", -1),
      "]": () => step("query", 1),
      "{": () => step("key", -1),
      "}": () => step("key", 1),
      m: () => store.set({ mode: cycle(parts.MODES, store.state.mode) }),
      t: () => store.set({ thumbs: !store.state.thumbs }),
      r: () => store.set({ reduce: cycle(parts.REDUCES, store.state.reduce) }),
      s: () => store.set({ scale: cycle(parts.SCALES, store.state.scale) }),
      a: () => viewer.text.turnTo(store.state.side === "row" ? "column" : "row"),
      "+": () => head.zoom(2),
      "=": () => head.zoom(2),
      "-": () => head.zoom(0.5),
      0: () => head.reset(),
      "/": () => search.focus(),
      n: () => search.next(1),
      N: () => search.next(-1),
      "?": () => viewer.help.showModal(),
    };
    const shifted = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
    const press = (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      const { target } = event;
      const inside = viewer.element.contains(target);
      if (!inside && !(target === document.body && parts.active === viewer)) return;
      if (writes(target) || (!inside && steers(target)) || (viewer.help.open && event.key !== "?")) return;
      if (viewer.help.open) {
        viewer.help.close();
        return;
      }
      const work = event.shiftKey && shifted[event.key] ? () => head.move(...shifted[event.key]) : plain[event.key];
      if (!work) return;
      event.preventDefault();
      work();
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  };

  /** The list of keys, as a dialog. */
  parts.keyList = () => {
    const rows = (list) => list.flatMap(([keys, about]) => [el("dt", {}, ...keys.split(/\s{2}/).map((key) => el("kbd", { text: key.trim() }))), el("dd", { text: about })]);
    const close = el("button", { type: "button", class: "hs-button", text: "Close" });
    const dialog = el("dialog", { class: "hs-help", "aria-label": "Keys" }, el("h2", { text: "Keys" }), el("dl", {}, ...rows(LIST)), el("h2", { text: "Mouse" }), el("dl", {}, ...rows(MOUSE)), close);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    return dialog;
  };
})();
