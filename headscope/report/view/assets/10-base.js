/* Ground of the viewer: its name, elements, numbers, a cache that forgets. No framework, nothing global but Headscope. */
(() => {
  "use strict";
  const Headscope = (window.Headscope = window.Headscope || {});
  const parts = (Headscope.parts = Headscope.parts || {});

  /**
   * Make an element: attributes by name, `class`, `text`, `on` (listeners by event) and `data` (data attributes) are special.
   * @param {string} tag
   * @param {Object} [attributes]
   * @param {...(Node|string|null)} children
   */
  parts.el = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") made.className = value;
      else if (name === "text") made.textContent = value;
      else if (name === "on") for (const [event, work] of Object.entries(value)) made.addEventListener(event, work);
      else if (name === "data") Object.assign(made.dataset, value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  };

  /** Buttons of which one is pressed. Not radio buttons: arrow keys stay free for moving between heads. */
  parts.segmented = (label, options, choose) => {
    const group = parts.el("div", { class: "hs-segmented", role: "group", "aria-label": label });
    for (const [value, text, about] of options) {
      const button = parts.el("button", { type: "button", class: "hs-segment", title: about, text, data: { value } });
      button.addEventListener("click", () => choose(value));
      group.append(button);
    }
    const show = (chosen) => {
      for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.value === chosen));
    };
    return { element: group, show };
  };

  /** A drop-down list with a label that is read but not seen. After a choice with the mouse the keys are the viewer's again. */
  parts.select = (label, choose, back) => {
    const element = parts.el("select", { "aria-label": label, class: "hs-select" });
    let mouse = false;
    element.addEventListener("pointerdown", () => (mouse = true));
    element.addEventListener("keydown", () => (mouse = false));
    element.addEventListener("change", () => {
      choose(element.value);
      if (mouse && back) back();
      mouse = false;
    });
    return element;
  };

  /** A number as people read it: four decimals, or an exponent where they would all be zero. */
  parts.number = (value, digits = 4) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const size = Math.abs(value);
    let text;
    if (size !== 0 && size < 0.5 * 10 ** -digits) text = value.toExponential(1);
    else if (size >= 1e6) text = value.toExponential(2);
    else text = value.toFixed(size >= 1000 ? 0 : size >= 100 ? Math.min(digits, 1) : size >= 10 ? Math.min(digits, 2) : digits);
    return text.replace("-", "−");
  };

  /** A number on a scale: as short as it can be. */
  parts.tick = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size < 1e-3 || size >= 1e5 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
    return text.replace("-", "−").replace("e+", "e");
  };

  /** Text with line breaks, tabs and long runs of spaces made visible and short. */
  const readable = (text) => {
    const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/ {3,}/g, (run) => `␣${run.length} `);
    return shown.trim() === "" ? shown.replaceAll(" ", "␣") : shown;
  };
  parts.readable = readable;

  /** Text of a token between quotes, cut in the middle of a list; spaces stay visible. */
  parts.quote = (text, most = 18) => {
    const letters = Array.from(readable(text));
    return `‘${letters.length > most ? letters.slice(0, most - 1).join("") + "…" : letters.join("")}’`;
  };

  /** A token as a label on an axis: no quotes, a leading space as a thin mark. */
  parts.label = (text, most = 14) => {
    const shown = readable(text);
    const letters = Array.from(shown.trimStart() || "∅");
    return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : letters.join("");
  };

  parts.clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  /** Least recently used entries leave when there are more than `limit`. */
  class Cache {
    constructor(limit) {
      this.limit = limit;
      this.entries = new Map();
    }
    get(key) {
      const found = this.entries.get(key);
      if (found !== undefined) {
        this.entries.delete(key);
        this.entries.set(key, found);
      }
      return found;
    }
    /** Look without counting it as a use. */
    peek(key) {
      return this.entries.get(key);
    }
    set(key, value) {
      this.entries.delete(key);
      this.entries.set(key, value);
      while (this.entries.size > this.limit) this.entries.delete(this.entries.keys().next().value);
      return value;
    }
    delete(key) {
      this.entries.delete(key);
    }
    clear() {
      this.entries.clear();
    }
  }
  parts.Cache = Cache;

  /** Call `work` at most once a frame, with whatever is true by then. */
  parts.perFrame = (work) => {
    let asked = 0;
    const ask = () => {
      asked = asked || requestAnimationFrame(() => {
        asked = 0;
        work();
      });
    };
    ask.cancel = () => {
      cancelAnimationFrame(asked);
      asked = 0;
    };
    return ask;
  };

  /** Call `work` once nothing asked for it during `wait` milliseconds. */
  parts.later = (work, wait) => {
    let timer = 0;
    const ask = (...given) => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        timer = 0;
        work(...given);
      }, wait);
    };
    ask.cancel = () => {
      clearTimeout(timer);
      timer = 0;
    };
    ask.pending = () => timer !== 0;
    return ask;
  };
})();
