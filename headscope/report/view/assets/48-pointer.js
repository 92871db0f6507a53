/* Mouse, pen and fingers on the head view: point, choose, drag, wheel, pinch. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const STILL = 4;

  /** Multiply by `factor` in a few frames, so that the eye can follow; at once where motion is not wanted. */
  parts.glide = (factor, step) => {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      step(factor);
      return;
    }
    const frames = 8;
    let left = frames;
    const part = factor ** (1 / frames);
    const go = () => {
      step(part);
      if (--left) requestAnimationFrame(go);
    };
    go();
  };

  /** Listen to the stage of a head panel. */
  parts.headPointer = (panel) => {
    const { stage } = panel;
    const down = new Map();
    let moved = 0;
    let spread = 0;
    const place = (event) => {
      const box = stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const gap = () => {
      const [a, b] = [...down.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };

    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      down.set(event.pointerId, place(event));
      moved = 0;
      if (down.size === 2) spread = gap();
    });
    stage.addEventListener("pointermove", (event) => {
      const [x, y] = place(event);
      const from = down.get(event.pointerId);
      if (!from) {
        if (!down.size) panel.point(panel.view.pick(x, y));
        return;
      }
      down.set(event.pointerId, [x, y]);
      if (down.size === 2) {
        const now = gap();
        const [a, b] = [...down.values()];
        if (panel.kind !== "lines" && spread > 0) {
          panel.heat.zoom(now / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
          panel.moved();
        }
        spread = now;
        moved = STILL + 1;
        return;
      }
      moved += Math.hypot(x - from[0], y - from[1]);
      if (moved <= STILL || panel.kind === "lines") return;
      if (!stage.hasPointerCapture(event.pointerId)) {
        stage.setPointerCapture(event.pointerId);
        stage.classList.add("hs-dragging");
        panel.point(null);
      }
      panel.move(x - from[0], y - from[1]);
    });
    const up = (event) => {
      if (!down.delete(event.pointerId)) return;
      stage.classList.remove("hs-dragging");
      if (event.type === "pointerup" && moved <= STILL) {
        const found = panel.view.pick(...place(event));
        if (found) panel.choose(found, event);
      }
    };
    stage.addEventListener("pointerup", up);
    stage.addEventListener("pointercancel", up);
    stage.addEventListener("pointerleave", () => panel.point(null));
    stage.addEventListener("dblclick", (event) => {
      event.preventDefault();
      panel.zoom(2.5, ...place(event));
    });
    stage.addEventListener("wheel", (event) => {
      if (panel.kind === "lines") return;
      const { heat } = panel;
      const lines = event.deltaMode === 1 ? 18 : 1;
      const factor = Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0022));
      // At either end of the zoom the page may scroll.
      if ((factor < 1 && heat.scale <= heat.least * 1.0001) || (factor > 1 && heat.scale >= heat.most * 0.9999)) {
        if (event.ctrlKey) event.preventDefault();
        return;
      }
      event.preventDefault();
      heat.zoom(factor, ...place(event));
      panel.moved();
      panel.point(panel.view.pick(...place(event)));
    }, { passive: false });
  };
})();
