/* Find text in the tokens, also where it runs over several of them. */
(() => {
  "use strict";
  const { parts } = Headscope;
  const { el } = parts;
  const SHOWN = 60;

  /** Lower case, with every kind of space and mark of a space as one blank; as long as the text was. */
  const plain = (text) => Array.from(text, (c) => {
    const lower = /[\s↵␍⇥⍽]/.test(c) ? " " : c.toLowerCase();
    return lower.length === c.length ? lower : c;
  }).join("");

  /** The text of all tokens and where each begins. */
  parts.searchable = (tokens) => {
    const starts = new Int32Array(tokens.length + 1);
    tokens.forEach((token, i) => (starts[i + 1] = starts[i] + token.length));
    return { text: plain(tokens.join("")), starts };
  };

  /** All places of some text, as half-open runs of tokens. */
  parts.find = ({ text, starts }, wanted) => {
    const found = [];
    const needle = plain(wanted);
    if (!needle.trim()) return found;
    const token = (at) => {
      let [low, high] = [0, starts.length - 2];
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (starts[middle] <= at) low = middle;
        else high = middle - 1;
      }
      return low;
    };
    for (let at = text.indexOf(needle); at !== -1; at = text.indexOf(needle, at + 1)) {
      // A blank in front belongs to the token's spelling, not to what was looked for.
      const first = token(at + needle.length - needle.trimStart().length);
      found.push([first, token(at + needle.length - 1) + 1]);
    }
    return found;
  };

  class Search {
    constructor(viewer) {
      this.viewer = viewer;
      this.hits = [];
      this.at = -1;
      const id = `${viewer.id}-hits`;
      this.input = el("input", { type: "search", class: "hs-input", placeholder: "Find in the text  /", "aria-label": "Find in the text", autocomplete: "off", spellcheck: "false", role: "combobox", "aria-expanded": "false", "aria-controls": id });
      this.count = el("span", { class: "hs-count", "aria-live": "polite" });
      this.list = el("ul", { class: "hs-hits", id, role: "listbox", "aria-label": "Places", hidden: true });
      this.element = el("div", { class: "hs-search", role: "search" }, this.input, this.count, this.list);
      this.input.addEventListener("input", () => this.run());
      this.input.addEventListener("focus", () => this.open(this.hits.length > 0));
      this.element.addEventListener("focusout", (event) => !this.element.contains(event.relatedTarget) && this.open(false));
      this.input.addEventListener("keydown", (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (step && this.hits.length) {
          event.preventDefault();
          this.light(this.at + step);
        } else if (event.key === "Enter" && this.hits.length) {
          event.preventDefault();
          // Enter goes to the hit that is lit; Enter again to the next.
          if (this.gone === this.at || this.at < 0) this.light(this.at + (event.shiftKey ? -1 : 1));
          this.go();
        } else if (event.key === "Escape") {
          event.stopPropagation();
          this.open(false);
          this.viewer.focus();
        }
      });
    }
    run() {
      if (!this.text) this.text = parts.searchable(this.viewer.meta.tokens);
      this.hits = parts.find(this.text, this.input.value);
      this.at = this.gone = -1;
      this.list.replaceChildren(...this.hits.slice(0, SHOWN).map(([from, to], n) => this.entry(from, to, n)));
      if (this.hits.length > SHOWN) this.list.append(el("li", { class: "hs-soft", role: "presentation", text: `and ${this.hits.length - SHOWN} more: Enter goes on` }));
      this.tell();
      this.open(this.hits.length > 0);
    }
    entry(from, to, n) {
      const { tokens } = this.viewer.meta;
      const part = (a, b) => tokens.slice(Math.max(a, 0), b).join("").replaceAll("\n", "↵").replace(/ {2,}/g, " ");
      const item = el("li", { role: "option", "aria-selected": "false", id: `${this.list.id}-${n}` },
        el("span", { class: "hs-where", text: to - from > 1 ? `${from}–${to - 1}` : String(from) }),
        el("span", { class: "hs-context" }, el("span", { class: "hs-soft", text: part(from - 4, from).slice(-18) }), el("b", { text: part(from, to) }), el("span", { class: "hs-soft", text: part(to, to + 5).slice(0, 24) })));
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        this.light(n);
        this.go();
        this.open(false);
      });
      return item;
    }
    open(open) {
      this.list.hidden = !open;
      this.input.setAttribute("aria-expanded", String(open));
    }
    light(n) {
      const many = this.hits.length;
      this.at = ((n % many) + many) % many;
      for (const item of this.list.children) item.setAttribute("aria-selected", "false");
      const item = this.list.children[this.at];
      if (item && this.at < SHOWN) {
        item.setAttribute("aria-selected", "true");
        item.scrollIntoView({ block: "nearest" });
        this.input.setAttribute("aria-activedescendant", item.id);
      } else this.input.removeAttribute("aria-activedescendant");
      this.tell();
    }
    tell() {
      this.count.textContent = this.input.value.trim() ? (this.hits.length ? `${this.at < 0 ? "" : `${this.at + 1} of `}${this.hits.length}` : "none") : "";
    }
    /** Choose the last token of the hit as query: its row has seen all of it. */
    go() {
      const [, to] = this.hits[this.at];
      this.gone = this.at;
      this.viewer.select(to - 1);
    }
    next(step) {
      if (!this.hits.length) return;
      this.light(this.at < 0 && step < 0 ? -1 : this.at + step);
      this.go();
    }
    focus() {
      this.input.focus();
      this.input.select();
    }
  }
  parts.Search = Search;
})();
