/* Along the map: positions or tokens, and the regions of the prompt. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { LEFT, TOP } = parts.MARGINS;
  const BAND = 5;
  /** Pixels of a token from which each has a name. */
  const NAMED = 11;
  const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000];

  /** Regions of the prompt as bands along both axes; names where they fit. */
  parts.paintRegions = (heat, pen, right, bottom) => {
    const { theme } = heat.viewer;
    const { plot } = heat;
    const names = [];
    heat.viewer.regions.forEach(({ name, runs, colour }) => {
      for (const [start, end] of runs) {
        const [x0, x1] = [Math.max(heat.x(start), plot.x), Math.min(heat.x(end), right)];
        const [y0, y1] = [Math.max(heat.y(start), plot.y), Math.min(heat.y(end), bottom)];
        if (x1 > x0) pen.rect(x0, plot.y - BAND - 2, Math.max(x1 - x0, 1.5), BAND, theme.regions[colour]);
        if (y1 > y0) pen.rect(plot.x - BAND - 2, y0, BAND, Math.max(y1 - y0, 1.5), theme.regions[colour]);
      }
      const [start, end] = runs[0];
      const middle = (Math.max(heat.x(start), plot.x) + Math.min(heat.x(end), right)) / 2;
      if (middle > plot.x && middle < right && heat.x(end) > plot.x && heat.x(start) < right) names.push({ name, at: middle, colour: theme.regions[colour] });
    });
    let last = -Infinity;
    for (const { name, at, colour } of names.sort((a, b) => a.at - b.at)) {
      const wide = name.length * 6;
      const from = Math.max(at - wide / 2, plot.x);
      if (from < last) continue;
      pen.text(from, 8, name, { fill: theme.soft, size: 10 });
      pen.rect(from, 15, Math.min(wide, 24), 2, colour);
      last = from + wide + 10;
    }
  };

  /** Which way the axes run, in the corner between them. */
  parts.paintCorner = (pen) => {
    const look = { fill: pen.theme.soft, size: 10, anchor: "end" };
    pen.text(LEFT - BAND - 6, TOP - 24, "key →", look);
    pen.text(LEFT - BAND - 6, TOP - 11, "query ↓", look);
  };

  /** Positions, or tokens where there is room for them. */
  parts.paintAxis = (heat, pen, axis, from, to) => {
    const { theme, store } = heat.viewer;
    const across = axis === "key";
    const [start, end] = across ? [heat.box[1], heat.box[3]] : [heat.box[0], heat.box[2]];
    const place = (i) => (across ? heat.x(i + 0.5) : heat.y(i + 0.5));
    const chosen = across ? heat.viewer.key : store.query;
    const named = heat.scale >= NAMED || heat.labels;
    const every = named ? Math.max(1, Math.ceil(NAMED / heat.scale)) : STEPS.find((n) => n * heat.scale >= (across ? 46 : 26)) || 100000;
    const words = (i) => (named ? parts.label(heat.meta.tokens[i], heat.scale >= NAMED ? 9 : 8) : String(i));
    const put = (i, strong) => {
      const at = place(i);
      if (at < from - 1 || at > to + 1) return;
      const fill = strong ? theme[across ? "warm" : "accent"] : named && i >= heat.meta.prompt_length ? theme.ink : theme.soft;
      const look = { fill, size: 10, weight: strong ? 700 : 400 };
      const edge = across ? TOP - BAND - 6 : LEFT - BAND - 6;
      if (across) pen.line([[at, TOP - BAND - 4], [at, TOP - BAND - 2]], theme.grey);
      else pen.line([[LEFT - BAND - 4, at], [LEFT - BAND - 2, at]], theme.grey);
      if (across && named) pen.text(at, edge, words(i), { ...look, anchor: "start", rotate: -60 });
      else if (across) pen.text(at, edge - 5, words(i), { ...look, anchor: "middle" });
      else pen.text(edge, at, words(i), { ...look, anchor: "end" });
      if (named && !across && heat.scale >= NAMED) pen.text(3, at, String(i), { fill: theme.soft, size: 9 });
    };
    const room = Math.max(across && !named ? 34 : 12, NAMED);
    for (let i = Math.ceil(start / every) * every; i < end; i += every) if (i !== chosen && (chosen === null || Math.abs(place(i) - place(chosen)) >= room)) put(i, false);
    if (chosen !== null && chosen >= start && chosen < end) put(chosen, true);
  };
})();
