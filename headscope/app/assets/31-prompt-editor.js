// The prompt's editor: a text area with marked regions, kept in UTF-16 units; every recipe that leaves counts characters
// (code points), as Python does. A backdrop behind the text area, of the same type and width, shows the marks and gives
// the area its height.
(() => {
  "use strict";

  const SUGGESTED = ["region", "needle", "question", "answer", "context", "instruction", "document"];
  const RESERVED = ["all", "bos", "generated", "last", "rest", "system"];
  const COLOURS = 6;
  const WAIT = 250; // ms after the last key until the recipe leaves
  const PLAIN_FROM = 300000; // characters from which marks are listed only, not drawn behind the text
  const SNAPSHOTS = 60;

  const { difference, shifted, marked, renamed, trimmed, toPoints, toUnits, tidyName, places, segments, namesOf } = window.headscopePrompt.pure;
  const shown = (number) => number.toLocaleString("en");

  // What a reload keeps: in the tab, so that two tabs do not mix.
  const store = {
    key: (name) => `headscope-prompt-${name}`,
    get(name) {
      try {
        return JSON.parse(sessionStorage.getItem(store.key(name)));
      } catch {
        return null;
      }
    },
    set(name, value) {
      try {
        sessionStorage.setItem(store.key(name), JSON.stringify(value));
      } catch {
        /* full, or off: the page works on */
      }
    },
  };

  function make(tag, properties = {}, children = []) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") node.className = value;
      else if (key === "data") Object.assign(node.dataset, value);
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key in node && !key.startsWith("aria")) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  class Editor {
    constructor(root, name, limit) {
      Object.assign(this, { root, name, limit, regions: [], text: "", settings: {}, base: "", history: [], matches: [] });
      this.counts = null;
      this.build();
      this.onSelection = () => this.selectionChanged();
      document.addEventListener("selectionchange", this.onSelection);
    }

    build() {
      const { name } = this;
      this.area = make("textarea", {
        id: `${name}-text`, class: "prompt-text", spellcheck: false, maxLength: this.limit, rows: 1,
        placeholder: "Type or paste a prompt, drop a text file here, or begin with an example.",
        "aria-describedby": `${name}-status`, autocomplete: "off",
        oninput: (event) => this.edited(event),
        onkeydown: (event) => this.key(event),
        onblur: () => this.flush(),
      });
      this.backdrop = make("div", { class: "prompt-backdrop", "aria-hidden": "true" });
      this.sheet = make("div", {
        class: "prompt-sheet", ondragover: (event) => this.over(event), ondragleave: () => this.sheet.classList.remove("is-over"),
        ondrop: (event) => this.dropped(event),
      }, [make("div", { class: "prompt-stack" }, [this.backdrop, this.area])]);
      this.status = make("div", { id: `${name}-status`, class: "prompt-status" });
      this.live = make("div", { class: "prompt-live", role: "status" });
      this.mono = make("input", { type: "checkbox", id: `${name}-mono`, onchange: () => this.monospace(this.mono.checked) });
      this.markName = make("input", {
        id: `${name}-mark-name`, class: "prompt-input", value: "region", maxLength: 32, autocomplete: "off",
        onkeydown: (event) => event.key === "Enter" && (event.preventDefault(), this.mark()),
      });
      this.markName.setAttribute("list", `${name}-mark-names`);
      this.markButton = make("button", {
        type: "button", class: "prompt-button", id: `${name}-mark`, "aria-keyshortcuts": "Alt+M",
        title: "Mark the selected text (Alt+M)", onclick: () => this.mark(),
        onmousedown: (event) => event.preventDefault(), // the selection stays
      }, ["Mark selection"]);
      this.find = make("input", {
        id: `${name}-find`, type: "search", class: "prompt-input", placeholder: "text", autocomplete: "off",
        oninput: () => this.search(),
        onkeydown: (event) => {
          if (event.key === "Enter") (event.preventDefault(), this.markFound(event.shiftKey));
          if (event.key === "Escape") (this.find.value = "", this.search());
        },
      });
      this.findAll = make("button", { type: "button", class: "prompt-button", id: `${name}-find-all`, disabled: true, onclick: () => this.markFound(true) }, ["Mark all"]);
      this.findNext = make("button", { type: "button", class: "prompt-button", id: `${name}-find-next`, disabled: true, onclick: () => this.markFound(false) }, ["Mark"]);
      this.found = make("span", { class: "prompt-found", role: "status" });
      this.chips = make("ul", { class: "prompt-chips", "aria-label": "Marked regions" });
      this.file = make("input", { type: "file", accept: ".txt,.md,.json", hidden: true, id: `${name}-file`, "aria-label": "Text file", onchange: () => this.takeFile(this.file.files[0]) });
      const names = make("datalist", { id: `${name}-mark-names` }, SUGGESTED.map((value) => make("option", { value })));
      const tools = make("div", { class: "prompt-tools" }, [
        make("span", { class: "prompt-tool" }, [this.markButton, make("label", { htmlFor: `${name}-mark-name` }, ["as"]), this.markName, names]),
        make("span", { class: "prompt-tool" }, [make("label", { htmlFor: `${name}-find` }, ["Find"]), this.find, this.findNext, this.findAll, this.found]),
      ]);
      const foot = make("div", { class: "prompt-foot" }, [
        this.status,
        make("label", { class: "prompt-mono" }, [this.mono, " Monospace"]),
      ]);
      this.root.replaceChildren(this.sheet, foot, tools, this.chips, this.live, this.file);
      this.monospace(store.get("mono") === true);
    }

    destroy() {
      document.removeEventListener("selectionchange", this.onSelection);
      clearTimeout(this.timer);
    }

    // -- text ----------------------------------------------------------------------------------------------------

    edited(event) {
      const text = this.area.value;
      const undo = /^history/.test(event.inputType || "");
      const known = undo && this.history.find((past) => past.text === text);
      this.remember();
      this.regions = known ? known.regions : shifted(this.regions, difference(this.text, text, undo ? undefined : this.area.selectionEnd));
      this.text = text;
      this.counts = null;
      this.draw();
      this.later();
    }

    remember() {
      if (this.text.length > 50000) return;
      this.history.push({ text: this.text, regions: this.regions });
      if (this.history.length > SNAPSHOTS) this.history.shift();
    }

    fill(fields, base) {
      if (fields) {
        const { text, regions, ...settings } = fields;
        if (text !== undefined) {
          this.remember();
          this.text = text;
          this.area.value = text;
          this.text = this.area.value; // as the browser keeps it
          this.regions = toUnits(this.text, (regions || []).map((region) => [...region])).filter(([, from, to]) => from < to && to <= this.text.length);
          this.counts = null;
          this.sheet.scrollTop = 0;
        }
        this.settings = { ...this.settings, ...settings };
        this.showSettings();
      }
      if (base !== undefined && base !== null) this.base = base;
      this.search();
      this.send();
    }

    showSettings() {
      const { model, chat, system, new_tokens: fresh, edit } = this.settings;
      const set = (part, value) => document.getElementById(`${this.name}-${part}`) && dash_clientside.set_props(`${this.name}-${part}`, { value });
      if (model !== undefined) set("model", model);
      if (chat !== undefined) set("chat", chat ? "chat" : "plain");
      if (system !== undefined) set("system", system || "");
      if (fresh !== undefined) set("new", fresh);
      if (edit !== undefined) set("edit", edit);
    }

    recipe() {
      const { model, chat, system, new_tokens: fresh, edit } = this.settings;
      return {
        model: model || "", text: this.text, chat: Boolean(chat), system: (chat && system) || null,
        regions: toPoints(this.text, this.regions), new_tokens: Number(fresh) || 0, edit: edit || null,
      };
    }

    later() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.send(), this.text.length > PLAIN_FROM ? 4 * WAIT : WAIT);
    }

    flush() {
      if (this.timer && this.begun) this.send();
    }

    send() {
      clearTimeout(this.timer);
      this.timer = null;
      const recipe = this.recipe();
      const written = JSON.stringify(recipe);
      store.set(this.name, { recipe, base: this.base });
      if (written === this.sent) {
        // Typed and taken back: the server has no news, but the count was forgotten.
        if (!this.counts) dash_clientside.set_props(`${this.name}-again`, { data: Date.now() });
        return;
      }
      this.sent = written;
      dash_clientside.set_props(`${this.name}-recipe`, { data: recipe });
    }

    // -- regions -------------------------------------------------------------------------------------------------

    mark(span) {
      const name = tidyName(this.markName.value) || "region";
      if (RESERVED.includes(name)) return this.say(`“${name}” has a meaning of its own. Choose another name.`, true);
      let [from, to] = span || [this.area.selectionStart, this.area.selectionEnd];
      if (from === to) return this.say("Select some text first, then mark it.", true);
      [from, to] = trimmed(this.text, from, to);
      this.remember();
      this.regions = marked(this.regions, name, from, to);
      this.markName.value = name;
      this.counts = null;
      this.draw();
      this.send();
      this.say(`Marked “${this.text.slice(from, to).slice(0, 40)}” as ${name}.`);
    }

    rename(old, wanted) {
      const name = tidyName(wanted);
      if (!name || name === old) return this.draw();
      if (RESERVED.includes(name)) return (this.draw(), this.say(`“${name}” has a meaning of its own. Choose another name.`, true));
      this.remember();
      this.regions = renamed(this.regions, old, name);
      this.counts = null;
      this.draw();
      this.send();
      this.say(`${old} is called ${name} now.`);
    }

    remove(name) {
      this.remember();
      this.regions = this.regions.filter((region) => region[0] !== name);
      this.draw();
      this.send();
      this.say(`${name} is marked no more.`);
      this.area.focus({ preventScroll: true });
    }

    select(from, to) {
      this.area.focus({ preventScroll: true });
      this.area.setSelectionRange(from, to);
      const mark = [...this.backdrop.querySelectorAll("[data-from]")].find((node) => Number(node.dataset.from) >= from);
      if (mark) this.sheet.scrollTop = Math.max(0, mark.offsetTop - this.sheet.clientHeight / 3);
    }

    selectionChanged() {
      const { area } = this;
      const some = area.selectionStart !== area.selectionEnd;
      this.markButton.classList.toggle("is-ready", some);
      this.markButton.setAttribute("aria-disabled", String(!some));
    }

    search() {
      this.matches = places(this.text, this.find.value);
      const many = this.matches.length;
      this.found.textContent = !this.find.value ? "" : many === 0 ? "not found" : many === 1 ? "1 place" : `${many >= 500 ? "500+" : many} places`;
      this.findNext.disabled = this.findAll.disabled = many === 0;
      this.draw();
      const first = this.backdrop.querySelector(".is-match");
      if (first && this.find.value) this.sheet.scrollTop = Math.max(0, first.offsetTop - this.sheet.clientHeight / 3);
    }

    markFound(all) {
      if (!this.matches.length) return;
      const name = tidyName(this.markName.value) || "region";
      const free = this.matches.filter(([from, to]) => !this.regions.some((region) => region[0] === name && region[1] <= from && region[2] >= to));
      if (!free.length) return this.say(`Every place is marked as ${name} already.`);
      for (const span of all ? free : free.slice(0, 1)) this.mark(span);
      if (all && free.length > 1) this.say(`Marked ${free.length} places as ${name}.`);
    }

    // -- what is seen --------------------------------------------------------------------------------------------

    /** The viewer colours regions in the same order: as they were marked. */
    colour(name) {
      const names = [...new Set(this.regions.map((region) => region[0]))];
      return names.indexOf(name) % COLOURS;
    }

    draw() {
      const names = namesOf(this.regions);
      const long = this.text.length > PLAIN_FROM;
      this.sheet.classList.toggle("is-long", long);
      if (long) this.backdrop.replaceChildren();
      else {
        const nodes = segments(this.text, this.regions, this.matches).map(([from, to, name, matched]) => {
          const piece = this.text.slice(from, to);
          if (name === null && !matched) return piece;
          const kind = (name === null ? "" : ` mark-${this.colour(name)}`) + (matched ? " is-match" : "");
          return make("mark", { class: `prompt-mark${kind}`, data: { from: String(from) } }, [piece]);
        });
        this.backdrop.replaceChildren(...nodes, "\u200b");
      }
      this.drawChips(names);
      this.drawStatus();
    }

    drawChips(names) {
      if (this.naming) return; // a count that arrives takes no field from who types in it
      this.chips.replaceChildren(...names.map((name) => {
        const spans = this.regions.filter((region) => region[0] === name).sort((a, b) => a[1] - b[1]);
        const first = this.text.slice(spans[0][1], Math.min(spans[0][2], spans[0][1] + 60)).replace(/\s+/g, " ").trim();
        const tokens = this.counts && this.counts.regions && this.counts.regions[name];
        const size = [spans.length > 1 ? `${spans.length} places` : "", tokens ? `${shown(tokens)} token${tokens === 1 ? "" : "s"}` : ""].filter(Boolean).join(" · ");
        let turn = 0;
        const go = make("button", {
          type: "button", class: "chip-go", title: "Show in the text", onclick: () => { const span = spans[turn++ % spans.length]; this.select(span[1], span[2]); },
        }, [make("span", { class: "chip-name" }, [name]), make("span", { class: "chip-words" }, [first]), make("span", { class: "chip-size" }, [size])]);
        const rename = make("button", { type: "button", class: "chip-act", title: "Rename", "aria-label": `Rename ${name}`, onclick: () => this.renaming(name, item) }, ["✎"]);
        const remove = make("button", { type: "button", class: "chip-act", title: "Remove", "aria-label": `Remove ${name}`, onclick: () => this.remove(name) }, ["×"]);
        const item = make("li", { class: `chip mark-${this.colour(name)}`, data: { region: name } }, [go, rename, remove]);
        return item;
      }));
    }

    renaming(name, item) {
      this.naming = true;
      const finish = (value) => {
        if (!this.naming) return;
        this.naming = false;
        this.rename(name, value);
        this.area.focus({ preventScroll: true });
      };
      const field = make("input", {
        class: "prompt-input chip-field", value: name, maxLength: 32, "aria-label": `New name of ${name}`,
        onkeydown: (event) => {
          if (event.key === "Enter") (event.preventDefault(), finish(field.value));
          if (event.key === "Escape") finish(name);
        },
        onblur: () => finish(field.value),
      });
      item.replaceChildren(field);
      field.focus();
      field.select();
    }

    drawStatus() {
      const characters = `${shown(this.text.length)} character${this.text.length === 1 ? "" : "s"}`;
      const found = this.counts;
      const parts = [];
      let over = false;
      if (!this.text.trim()) parts.push("Empty");
      else if (found && found.state === "counted") {
        const total = found.tokens + (Number(this.settings.new_tokens) || 0);
        over = found.limit !== null && total > found.limit;
        const written = total > found.tokens ? ` + ${shown(total - found.tokens)} to write` : "";
        parts.push(`${shown(found.tokens)}${written}${found.limit === null ? "" : ` of ${shown(found.limit)}`} tokens`, characters);
        if (over) parts.push(`${shown(total - found.limit)} too many for this model`);
      } else if (found && found.state === "wrong") parts.push(found.error);
      else parts.push(`≈ ${shown(Math.max(1, Math.round(this.text.length / 4.4)))} tokens`, characters);
      this.status.replaceChildren(make("span", {}, [parts.join(" · ")]));
      if (found && found.state === "counted" && found.limit) {
        const share = Math.min(1, (found.tokens + (Number(this.settings.new_tokens) || 0)) / found.limit);
        const bar = make("span", { class: "prompt-fill", "aria-hidden": "true" }, [make("i")]);
        bar.firstChild.style.width = `${100 * share}%`;
        this.status.prepend(bar);
      }
      this.status.classList.toggle("is-wrong", over || Boolean(found && found.state === "wrong"));
    }

    say(text, wrong = false) {
      this.live.textContent = text;
      this.live.classList.toggle("is-wrong", wrong);
      clearTimeout(this.quiet);
      this.quiet = setTimeout(() => { this.live.textContent = ""; }, 6000);
    }

    monospace(on) {
      this.mono.checked = on;
      this.sheet.classList.toggle("is-mono", on);
      store.set("mono", on);
    }

    // -- keys and files ------------------------------------------------------------------------------------------

    key(event) {
      if (event.altKey && event.code === "KeyM" && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        this.mark();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.flush();
        document.getElementById(`${this.name}-go`)?.click();
      }
    }

    over(event) {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      this.sheet.classList.add("is-over");
    }

    dropped(event) {
      this.sheet.classList.remove("is-over");
      const [file] = event.dataTransfer.files;
      if (!file) return;
      event.preventDefault();
      this.takeFile(file);
    }

    async takeFile(file) {
      this.file.value = "";
      if (!file) return;
      // The server looks again; what it would refuse need not be sent.
      if (!/\.(txt|md|json)$/i.test(file.name)) return this.say(`${file.name} is no text that can be opened here: choose .txt, .md or .json.`, true);
      if (file.size > this.limit) return this.say(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; a prompt may have ${(this.limit / 1e6).toFixed(1)}.`, true);
      const bytes = new Uint8Array(await file.arrayBuffer());
      let binary = "";
      for (let i = 0; i < bytes.length; i += 0x8000) binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
      dash_clientside.set_props(`${this.name}-open`, { data: { upload: { name: file.name, data: btoa(binary) }, at: Date.now() } });
    }
  }

  Object.assign(window.headscopePrompt, { Editor, store });
})();
