/* One way to draw, on a canvas or as SVG: what is exported is what is seen, by the same lines of code. */
(() => {
  "use strict";
  const { parts } = Headscope;

  /** Fit a canvas to a size in CSS pixels, sharp on any screen; returns its context scaled to CSS pixels. */
  parts.fit = (canvas, width, height) => {
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w;
      canvas.height = h;
    }
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(w / width, 0, 0, h / height, 0, 0);
    return context;
  };

  /** Thin diagonal strokes: nothing can be here. */
  parts.hatch = (colour) => {
    const tile = document.createElement("canvas");
    const ratio = window.devicePixelRatio || 1;
    tile.width = tile.height = Math.round(8 * ratio);
    const context = tile.getContext("2d");
    context.scale(tile.width / 8, tile.height / 8);
    context.strokeStyle = colour;
    context.lineWidth = 0.8;
    context.beginPath();
    for (const at of [-8, 0, 8]) {
      context.moveTo(at - 1, 9);
      context.lineTo(at + 9, -1);
    }
    context.stroke();
    return tile;
  };

  class CanvasPen {
    constructor(context, theme) {
      this.context = context;
      this.theme = theme;
    }
    rect(x, y, w, h, fill, { stroke, opacity = 1, width = 1 } = {}) {
      const c = this.context;
      c.globalAlpha = opacity;
      if (fill) {
        c.fillStyle = fill;
        c.fillRect(x, y, w, h);
      }
      if (stroke) {
        c.strokeStyle = stroke;
        c.lineWidth = width;
        c.strokeRect(x, y, w, h);
      }
      c.globalAlpha = 1;
    }
    path(points) {
      const c = this.context;
      c.beginPath();
      points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
    }
    line(points, stroke, { width = 1, opacity = 1, dash = [] } = {}) {
      const c = this.context;
      this.path(points);
      c.setLineDash(dash);
      c.globalAlpha = opacity;
      c.strokeStyle = stroke;
      c.lineWidth = width;
      c.stroke();
      c.setLineDash([]);
      c.globalAlpha = 1;
    }
    area(points, fill, { opacity = 1 } = {}) {
      this.path(points);
      this.context.globalAlpha = opacity;
      this.context.fillStyle = fill;
      this.context.fill();
      this.context.globalAlpha = 1;
    }
    curve(x0, y0, x1, y1, stroke, { width = 1, opacity = 1 } = {}) {
      const c = this.context;
      const middle = (x0 + x1) / 2;
      c.beginPath();
      c.moveTo(x0, y0);
      c.bezierCurveTo(middle, y0, middle, y1, x1, y1);
      c.globalAlpha = opacity;
      c.strokeStyle = stroke;
      c.lineWidth = width;
      c.stroke();
      c.globalAlpha = 1;
    }
    circle(x, y, r, fill) {
      const c = this.context;
      c.beginPath();
      c.arc(x, y, r, 0, 2 * Math.PI);
      c.fillStyle = fill;
      c.fill();
    }
    text(x, y, words, { fill = this.theme.ink, size = 11, anchor = "start", rotate = 0, weight = 400 } = {}) {
      const c = this.context;
      c.font = `${weight} ${size}px ${this.theme.font}`;
      c.textAlign = { start: "left", middle: "center", end: "right" }[anchor];
      c.textBaseline = "middle";
      c.fillStyle = fill;
      if (!rotate) {
        c.fillText(words, x, y);
        return;
      }
      c.save();
      c.translate(x, y);
      c.rotate((rotate * Math.PI) / 180);
      c.fillText(words, 0, 0);
      c.restore();
    }
    image(canvas, sx, sy, sw, sh, x, y, w, h) {
      this.context.imageSmoothingEnabled = false;
      this.context.drawImage(canvas, sx, sy, sw, sh, x, y, w, h);
    }
    hatched(points) {
      const c = this.context;
      this.path(points);
      const pattern = c.createPattern(this.hatchTile(), "repeat");
      const ratio = window.devicePixelRatio || 1;
      pattern.setTransform(new DOMMatrix().scale(1 / ratio, 1 / ratio));
      c.fillStyle = this.theme.panel;
      c.fill();
      c.fillStyle = pattern;
      c.fill();
    }
    hatchTile() {
      const { theme } = this;
      if (!theme.hatch) theme.hatch = parts.hatch(theme.line);
      return theme.hatch;
    }
    clipped(x, y, w, h, work) {
      const c = this.context;
      c.save();
      c.beginPath();
      c.rect(x, y, w, h);
      c.clip();
      work();
      c.restore();
    }
  }
  parts.CanvasPen = CanvasPen;

  const escape = (words) => String(words).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "");
  const n = (value) => Number(value.toFixed(2));

  let pictures = 0;

  class SvgPen {
    constructor(width, height, theme) {
      // Names of its own: several pictures may end up in one page.
      this.id = `hs${++pictures}`;
      this.size = [width, height];
      this.theme = theme;
      this.body = [];
      this.defs = [];
    }
    put(text) {
      this.body.push(text);
    }
    rect(x, y, w, h, fill, { stroke, opacity = 1, width = 1 } = {}) {
      const edge = stroke ? ` stroke="${stroke}" stroke-width="${width}"` : "";
      const thin = opacity < 1 ? ` opacity="${n(opacity)}"` : "";
      this.put(`<rect x="${n(x)}" y="${n(y)}" width="${n(w)}" height="${n(h)}" fill="${fill || "none"}"${edge}${thin}/>`);
    }
    line(points, stroke, { width = 1, opacity = 1, dash = [] } = {}) {
      const dashes = dash.length ? ` stroke-dasharray="${dash.join(" ")}"` : "";
      this.put(`<polyline points="${points.map(([x, y]) => `${n(x)},${n(y)}`).join(" ")}" fill="none" stroke="${stroke}" stroke-width="${width}" opacity="${n(opacity)}"${dashes}/>`);
    }
    area(points, fill, { opacity = 1 } = {}) {
      this.put(`<polygon points="${points.map(([x, y]) => `${n(x)},${n(y)}`).join(" ")}" fill="${fill}" opacity="${n(opacity)}"/>`);
    }
    curve(x0, y0, x1, y1, stroke, { width = 1, opacity = 1 } = {}) {
      const middle = n((x0 + x1) / 2);
      this.put(`<path d="M${n(x0)} ${n(y0)}C${middle} ${n(y0)} ${middle} ${n(y1)} ${n(x1)} ${n(y1)}" fill="none" stroke="${stroke}" stroke-width="${n(width)}" opacity="${opacity.toFixed(3)}"/>`);
    }
    circle(x, y, r, fill) {
      this.put(`<circle cx="${n(x)}" cy="${n(y)}" r="${r}" fill="${fill}"/>`);
    }
    text(x, y, words, { fill = this.theme.ink, size = 11, anchor = "start", rotate = 0, weight = 400 } = {}) {
      const turn = rotate ? ` transform="rotate(${rotate} ${n(x)} ${n(y)})"` : "";
      const bold = weight === 400 ? "" : ` font-weight="${weight}"`;
      this.put(`<text x="${n(x)}" y="${n(y)}" font-size="${size}" fill="${fill}" text-anchor="${anchor}" dominant-baseline="central" xml:space="preserve"${bold}${turn}>${escape(words)}</text>`);
    }
    image(canvas, sx, sy, sw, sh, x, y, w, h) {
      const part = document.createElement("canvas");
      [part.width, part.height] = [Math.max(1, Math.round(sw)), Math.max(1, Math.round(sh))];
      part.getContext("2d").drawImage(canvas, sx, sy, sw, sh, 0, 0, part.width, part.height);
      this.put(`<image x="${n(x)}" y="${n(y)}" width="${n(w)}" height="${n(h)}" preserveAspectRatio="none" style="image-rendering:pixelated" href="${part.toDataURL()}"/>`);
    }
    hatched(points) {
      const { line, panel } = this.theme;
      if (!this.defs.some((one) => one.startsWith("<pattern"))) this.defs.push(`<pattern id="${this.id}-hatch" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="${panel}"/><path d="M-1 1L1 -1M-1 9L9 -1M7 9L9 7" stroke="${line}" stroke-width="0.8"/></pattern>`);
      this.area(points, `url(#${this.id}-hatch)`);
    }
    clipped(x, y, w, h, work) {
      const id = `${this.id}-clip${this.defs.length}`;
      this.defs.push(`<clipPath id="${id}"><rect x="${n(x)}" y="${n(y)}" width="${n(w)}" height="${n(h)}"/></clipPath>`);
      this.put(`<g clip-path="url(#${id})">`);
      work();
      this.put("</g>");
    }
    toString() {
      const [w, h] = this.size;
      return `<svg xmlns="http://www.w3.org/2000/svg" width="${n(w)}" height="${n(h)}" viewBox="0 0 ${n(w)} ${n(h)}" font-family="${escape(this.theme.font)}"><defs>${this.defs.join("")}</defs><rect width="100%" height="100%" fill="${this.theme.panel}"/>${this.body.join("\n")}</svg>`;
    }
  }
  parts.SvgPen = SvgPen;

  /** A colour bar with numbers: `share` of each tick is where it sits. */
  parts.colourBar = (pen, x, y, w, { at, ticks, title, label = parts.tick }) => {
    const { theme } = pen;
    const steps = Math.max(24, Math.round(w / 3));
    for (let i = 0; i < steps; i++) pen.rect(x + (i * w) / steps, y, w / steps + 0.5, 6, at(i / (steps - 1)));
    ticks.forEach(([share, value], i) => {
      const anchor = i === 0 ? "start" : i === ticks.length - 1 ? "end" : "middle";
      pen.line([[x + share * w, y + 6], [x + share * w, y + 9]], theme.soft);
      pen.text(x + share * w, y + 16, label(value), { fill: theme.soft, size: 10, anchor });
    });
    if (title) pen.text(x, y - 8, title, { fill: theme.soft, size: 10 });
  };
})();
