"use strict";
(() => {
  const narrow = matchMedia("(max-width: 560px)");
  const night = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const dark = JSON.parse(document.getElementById("dark").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  let printing = false;

  // Figures are written in the light palette: swap each colour for its dark partner, leaving data and text alone.
  const literal = new Set(["text", "customdata", "x", "y", "hovertext", "name"]);
  function recolour(value) {
    if (typeof value === "string") return dark[value] || value;
    if (Array.isArray(value)) return value.map(recolour);
    if (value && typeof value === "object") {
      for (const key of Object.keys(value)) {
        if (!(literal.has(key) && Array.isArray(value[key]))) value[key] = recolour(value[key]);
      }
    }
    return value;
  }

  function fit(figure) {
    const layout = figure.layout;
    layout.margin = Object.assign({}, layout.template.layout.margin, layout.margin);
    if (!narrow.matches) return layout;
    const across = layout.xaxis;
    if (across && across.dtick && across.range && (across.range[1] - across.range[0]) / across.dtick > 16) {
      across.dtick *= 5;
    }
    layout.margin.l = 34;
    layout.margin.r = 6;
    layout.font = Object.assign({}, layout.font, { size: 11 });
    if (layout.coloraxis && figure.data.some((trace) => trace.mode === "text")) {
      layout.coloraxis.showscale = false;
    } else if (layout.coloraxis) {
      // The colour bar lies over the map instead of taking width from it.
      layout.margin.t = Math.max(layout.margin.t, 52);
      layout.coloraxis.colorbar = { orientation: "h", thickness: 8, len: 0.7, lenmode: "fraction",
        x: 0, xanchor: "left", y: 1, yanchor: "bottom", ypad: 4,
        outlinewidth: 0, tickfont: { size: 10 } };
    }
    return layout;
  }

  function draw(plot) {
    let figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    if (night.matches && !printing) figure = recolour(figure);
    const layout = fit(figure);
    if (touch.matches || narrow.matches) layout.dragmode = false;
    const config = { responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d"] };
    const known = plot.classList.contains("js-plotly-plot");
    return Plotly[known ? "react" : "newPlot"](plot, figure.data, layout, config).then(() => {
      if (!known && plot.dataset.table) plot.on("plotly_click", (event) => {
        const at = event.points[0];
        Tables.find(plot.dataset.table, `L${at.x}H${at.y}`);
      });
    });
  }

  // One figure per turn keeps the page alive while many are drawn; those in view come first.
  async function drawAll() {
    for (const plot of plots) {
      await draw(plot);
      await new Promise((done) => setTimeout(done));
    }
    document.documentElement.dataset.drawn = "yes";
  }

  night.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { printing = true; document.querySelectorAll("details").forEach((one) => { one.open = true; }); if (night.matches) plots.forEach(draw); });
  addEventListener("afterprint", () => { printing = false; if (night.matches) plots.forEach(draw); });
  drawAll();
})();
