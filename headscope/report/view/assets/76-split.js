/* Edges between panels that can be dragged, or moved with arrow keys; a double click puts them back. Sizes are kept in the browser. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const KEPT = "headscope-panels";
  const STEP = 16;

  // Which property, of which panel, seen from which side, and between which sizes.
  const EDGES = [
    { name: "left", panel: "model", label: "Width of the heads panel", upright: true, sign: 1, least: 180, most: 0.45 },
    { name: "right", panel: "text", label: "Width of the text panel", upright: true, sign: -1, least: 240, most: 0.5 },
    { name: "bottom", panel: "neuron", label: "Height of the neuron panel", upright: false, sign: -1, least: 60, most: 0.6 },
  ];

  function kept() {
    try {
      return JSON.parse(localStorage.getItem(KEPT)) || {};
    } catch {
      return {};
    }
  }
  function keep(sizes) {
    try {
      localStorage.setItem(KEPT, JSON.stringify(sizes));
    } catch {
      /* storage is off: the sizes last as long as the page */
    }
  }

  /** Put the edges of a viewer in place. */
  parts.splits = (viewer) => {
    const { element } = viewer;
    const sizes = kept();
    for (const edge of EDGES) {
      const panel = viewer[edge.panel].element;
      const bar = el("div", { class: `hs-split hs-split-${edge.name}`, role: "separator", tabindex: "0", "aria-label": edge.label, "aria-orientation": edge.upright ? "vertical" : "horizontal", title: "Drag; double click puts it back" });
      const whole = () => (edge.upright ? element.clientWidth : element.clientHeight) || 1000;
      const now = () => (edge.upright ? panel.offsetWidth : panel.offsetHeight);
      const set = (size) => {
        if (size === null) {
          delete sizes[edge.name];
          element.style.removeProperty(`--hs-${edge.name}`);
        } else {
          sizes[edge.name] = Math.round(parts.clamp(size, edge.least, whole() * edge.most));
          element.style.setProperty(`--hs-${edge.name}`, `${sizes[edge.name]}px`);
        }
        bar.setAttribute("aria-valuenow", String(Math.round(parts.clamp((100 * (size ?? now())) / whole(), 0, 100))));
      };
      bar.setAttribute("aria-valuemin", "0");
      bar.setAttribute("aria-valuemax", "100");
      set(Number.isFinite(sizes[edge.name]) ? sizes[edge.name] : null);
      let from = null;
      bar.addEventListener("pointerdown", (event) => {
        bar.setPointerCapture(event.pointerId);
        from = { at: edge.upright ? event.clientX : event.clientY, size: now() };
        event.preventDefault();
      });
      bar.addEventListener("pointermove", (event) => from && set(from.size + edge.sign * ((edge.upright ? event.clientX : event.clientY) - from.at)));
      const end = () => {
        if (from) keep(sizes);
        from = null;
      };
      bar.addEventListener("pointerup", end);
      bar.addEventListener("pointercancel", end);
      bar.addEventListener("dblclick", () => {
        set(null);
        keep(sizes);
      });
      bar.addEventListener("keydown", (event) => {
        const by = (edge.upright ? { ArrowLeft: -STEP, ArrowRight: STEP } : { ArrowUp: -STEP, ArrowDown: STEP })[event.key];
        if (!by) return;
        event.preventDefault();
        set(now() + edge.sign * by);
        keep(sizes);
      });
      panel.append(bar);
    }
  };
})();
