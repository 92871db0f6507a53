// Figures: drawn in the colours of the scheme that is on, and saved as PNG, SVG, HTML or CSV.
window.dash_clientside = window.dash_clientside || {};
(() => {
  "use strict";
  // As the server gave them, in light colours: what HTML and CSV are made of.
  const given = new Map();

  // Figures are written in the light palette: swap each colour for its dark partner, leaving data and text alone.
  const literal = new Set(["text", "customdata", "x", "y", "z", "hovertext", "name", "ids", "bdata"]);
  function recoloured(value, dark) {
    if (typeof value === "string") return dark[value.toLowerCase()] || value;
    if (Array.isArray(value)) return value.map((one) => recoloured(one, dark));
    if (value && typeof value === "object") {
      const made = {};
      for (const [key, one] of Object.entries(value)) {
        made[key] = literal.has(key) && (Array.isArray(one) || key === "bdata") ? one : recoloured(one, dark);
      }
      return made;
    }
    return value;
  }

  function isDark() {
    return document.documentElement.getAttribute("data-mantine-color-scheme") === "dark";
  }

  function coloured(figure, dark) {
    // A deep copy either way: plotly writes into what it is given.
    return isDark() ? recoloured(figure, dark) : structuredClone(figure);
  }

  // As Dash writes a pattern's id into the page.
  const key = (id) => (typeof id === "string" ? id : JSON.stringify(id, Object.keys(id).sort()));

  function draw(figure, scheme, dark, id) {
    if (!figure || !figure.data) {
      given.delete(key(id));
      return [{ data: [], layout: {} }, true, {}];
    }
    given.set(key(id), figure);
    const drawn = coloured(figure, dark);
    if (matchMedia("(pointer: coarse)").matches) drawn.layout.dragmode = false;
    return [drawn, false, { height: `${drawn.layout.height || 360}px` }];
  }

  const types = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array,
    f4: Float32Array, f8: Float64Array };
  function numbers(value) {
    if (value == null) return [];
    if (Array.isArray(value) || ArrayBuffer.isView(value)) return Array.from(value);
    if (typeof value === "object" && value.bdata && types[value.dtype]) {
      const bytes = Uint8Array.from(atob(value.bdata), (one) => one.charCodeAt(0));
      const flat = Array.from(new types[value.dtype](bytes.buffer));
      const shape = String(value.shape || "").split(",").map(Number);
      if (shape.length !== 2) return flat;
      return Array.from({ length: shape[0] }, (_, row) => flat.slice(row * shape[1], (row + 1) * shape[1]));
    }
    return [value];
  }

  function plain(text) {
    const made = new DOMParser().parseFromString(String(text ?? "").replaceAll("<br>", "; "), "text/html");
    return made.body.textContent;
  }

  // One row per mark, whatever kind of trace it belongs to.
  function rows(figure) {
    const found = [];
    for (const trace of figure.data) {
      if (trace.mode === "text" || (trace.hoverinfo === "skip" && trace.type !== "heatmap")) continue;
      const x = numbers(trace.x), y = numbers(trace.y), label = numbers(trace.text);
      const name = plain(trace.name);
      if (trace.z != null) {
        numbers(trace.z).forEach((line, i) => line.forEach((value, j) => {
          if (value !== null && value === value) found.push({ trace: name, x: x[j] ?? j, y: y[i] ?? i, value });
        }));
        continue;
      }
      const across = trace.error_x, up = trace.error_y;
      const error = across && across.array ? [x, across] : up && up.array ? [y, up] : null;
      const plus = error ? numbers(error[1].array) : [], minus = error ? numbers(error[1].arrayminus) : [];
      for (let i = 0; i < Math.max(x.length, y.length); i++) {
        const row = { trace: name, x: x[i], y: y[i] };
        if (error) Object.assign(row, { low: error[0][i] - (minus[i] ?? plus[i]), high: error[0][i] + plus[i] });
        if (label.length > i) row.label = plain(label[i]);
        found.push(row);
      }
    }
    return found;
  }

  function csv(figure) {
    const all = rows(figure);
    const columns = ["trace", "x", "y", "low", "high", "value", "label"].filter((name) => all.some((row) => name in row));
    const cell = (value) => {
      const text = value === null || value === undefined || value !== value ? "" : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [columns.join(","), ...all.map((row) => columns.map((name) => cell(row[name])).join(","))].join("\n") + "\n";
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function titled(frame) {
    const heading = frame.closest("[data-title]");
    return heading ? heading.dataset.title : "";
  }

  async function picture(plot, kind) {
    const paper = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim();
    const layout = { ...plot.layout, paper_bgcolor: paper, plot_bgcolor: paper };
    const size = { width: plot.clientWidth, height: plot.clientHeight };
    const url = await Plotly.toImage({ data: plot.data, layout }, { format: kind, scale: kind === "png" ? 2 : 1, ...size });
    if (kind === "svg") return new Blob([decodeURIComponent(url.slice(url.indexOf(",") + 1))], { type: "image/svg+xml" });
    const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (one) => one.charCodeAt(0));
    return new Blob([bytes], { type: "image/png" });
  }

  async function page(figure, frame) {
    const caption = frame.querySelector("figcaption > span").textContent;
    const answer = await fetch("/figure/page", { method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ figure, title: titled(frame), caption }) });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.blob();
  }

  async function exported(kind, frame) {
    const plot = frame.querySelector(".js-plotly-plot"), figure = given.get(frame.querySelector(".dash-graph").id);
    if (kind === "csv") return new Blob([csv(figure)], { type: "text/csv" });
    return kind === "html" ? page(figure, frame) : picture(plot, kind);
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest && event.target.closest("[data-export]");
    if (!button) return;
    const kind = button.dataset.export, frame = button.closest(".figure");
    button.disabled = true;
    try {
      save(await exported(kind, frame), `${frame.dataset.file}.${kind}`);
    } catch (error) {
      button.title = `Could not be saved: ${error.message}`;
      button.classList.add("figure-failed");
    } finally {
      button.disabled = false;
    }
  });

  Object.assign(window.dash_clientside, { headscope_figure: { draw, csv, recoloured } });
})();
