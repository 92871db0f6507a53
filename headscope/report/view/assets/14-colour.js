/* Colours of the page's theme, and from numbers to colours. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const NAMES = ["paper", "panel", "ink", "soft", "line", "wash", "accent", "warm", "grey", "band", "gold", "heat", "good", "bad"];

  const channels = (colour) => {
    const hex = colour.trim().replace("#", "");
    const full = hex.length === 3 ? [...hex].map((c) => c + c).join("") : hex;
    return [0, 2, 4].map((at) => parseInt(full.slice(at, at + 2), 16));
  };

  /** 256 colours along a ramp, packed as the pixels of an image are. */
  function table(stops) {
    const colours = stops.map(channels);
    const packed = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (colours.length - 1);
      const low = Math.min(Math.floor(at), colours.length - 2);
      const [r, g, b] = [0, 1, 2].map((c) => Math.round(colours[low][c] + (at - low) * (colours[low + 1][c] - colours[low][c])));
      packed[i] = (255 << 24) | (b << 16) | (g << 8) | r;
    }
    return packed;
  }

  const css = (packed) => `rgb(${packed & 255},${(packed >> 8) & 255},${(packed >> 16) & 255})`;

  /** Black or white, whichever is read better on a colour. */
  function onColour(packed) {
    const [r, g, b] = [packed & 255, (packed >> 8) & 255, (packed >> 16) & 255].map((c) => {
      const s = c / 255;
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#080806" : "#fefefe";
  }

  /** Read the palette that holds at an element; `version` tells themes apart in caches. */
  let versions = 0;
  parts.readTheme = (element) => {
    const style = getComputedStyle(element);
    const value = (name, otherwise) => style.getPropertyValue(`--${name}`).trim() || otherwise;
    const theme = { version: ++versions, font: style.fontFamily };
    for (const name of NAMES) theme[name] = value(name, name === "paper" || name === "panel" ? "#ffffff" : "#444444");
    const ramps = { ramp: table(value("ramp", "#ffffff,#000000").split(",")), diverging: table(value("diverging", "#aa4400,#eeeeee,#0044aa").split(",")) };
    const at = (packed, share) => packed[Math.round(parts.clamp(share, 0, 1) * 255)];
    return Object.assign(theme, ramps, {
      rampAt: (share) => css(at(ramps.ramp, share)),
      divergingAt: (share) => css(at(ramps.diverging, share)),
      onRamp: (share) => onColour(at(ramps.ramp, share)),
      onDiverging: (share) => onColour(at(ramps.diverging, share)),
      regions: [theme.accent, theme.warm, theme.good, theme.gold, theme.bad, theme.grey],
    });
  };

  /** Tell `work` when the page turns light or dark. Returns what stops it. */
  parts.watchTheme = (work) => {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const attribute = new MutationObserver(work);
    attribute.observe(document.documentElement, { attributes: true, attributeFilter: ["data-mantine-color-scheme", "class", "data-theme"] });
    system.addEventListener("change", work);
    return () => {
      attribute.disconnect();
      system.removeEventListener("change", work);
    };
  };

  /** Decades that a logarithmic scale spans below its top. */
  const DECADES = 4;

  /**
   * From a weight to its share of the ramp, 0 to 1.
   * @param {"linear"|"sqrt"|"log"} scale
   * @param {number} top - weight at the end of the ramp
   */
  parts.transfer = (scale, top) => {
    if (!(top > 0)) return () => 0;
    if (scale === "linear") return (v) => (v >= top ? 1 : v > 0 ? v / top : 0);
    if (scale === "sqrt") return (v) => (v >= top ? 1 : v > 0 ? Math.sqrt(v / top) : 0);
    return (v) => (v >= top ? 1 : v > top * 10 ** -DECADES ? 1 + Math.log10(v / top) / DECADES : 0);
  };

  /** Places along the ramp, and the weights that are shown there. */
  parts.ticksOf = (scale, top) => {
    const weight = { linear: (share) => share * top, sqrt: (share) => share ** 2 * top, log: (share) => top * 10 ** (-DECADES * (1 - share)) }[scale];
    // Round numbers where the top is one.
    const shares = { linear: [0, 0.25, 0.5, 1], sqrt: [0, 0.05, 0.2, 0.5, 1].map(Math.sqrt), log: [0, 0.25, 0.5, 0.75, 1] }[scale];
    return shares.map((share) => [share, weight(share)]);
  };

  /** Least of 1, 2, 5 × 10ⁿ that is no less than a value: domains stay put while a map is moved. */
  parts.niceTop = (value) => {
    if (!(value > 0)) return 1;
    const power = 10 ** Math.floor(Math.log10(value));
    for (const step of [1, 2, 5, 10]) if (value <= step * power * 1.0001) return step * power;
    return 10 * power;
  };

  /** Paint numbers as pixels of a small canvas. `skip(r, c)` leaves a pixel empty. */
  parts.raster = (data, rows, cols, share, packed, skip) => {
    const canvas = document.createElement("canvas");
    canvas.width = cols;
    canvas.height = rows;
    const image = new ImageData(cols, rows);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = packed[(share(data[i]) * 255 + 0.5) | 0];
    if (skip) for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) if (skip(r, c)) pixels[r * cols + c] = 0;
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  };
})();
