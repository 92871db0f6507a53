// Steer: what the form of a method holds, the address, and the numbers of the token that one points at.
window.dash_clientside = window.dash_clientside || {};
(() => {
  "use strict";

  const PATH = "/steer";
  const LAST = "headscope-steer-last"; // the tab's last address, for those who come back without one
  const none = () => window.dash_clientside.no_update;
  const context = () => window.dash_clientside.callback_context;
  const empty = (value) => value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length);
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const triggers = () => context().triggered.map((one) => one.prop_id.slice(0, one.prop_id.lastIndexOf(".")));

  // -- the form of a method ------------------------------------------------------------------------------------------

  /** The values of all forms, by method: a form that is left keeps its values. */
  function keep(values, ids, known, file) {
    if (!ids.length) return [none(), none()];
    const made = { ...(known || {}) };
    const form = ids[0].form;
    made[form] = Object.fromEntries(ids.map((id, i) => [id.field, values[i] ?? null]));
    const chosen = made[form].file || null;
    return [same(made, known) ? none() : made, chosen === (file || null) ? none() : chosen];
  }

  const REGIONS = new Set(["region", "source", "target", "segments", "token"]);
  const OWN = { source: ["last"], target: ["all", "last", "generated"], token: ["0"] };

  /** Names of the prompt's regions in fields that take some; a field that needs one and has none takes the likely one. */
  function regions(recipe, _form, ids, values, data) {
    const names = [...new Set(((recipe && recipe.regions) || []).map((region) => region[0]))];
    const before = regions.names || [];
    regions.names = names;
    const out = ids.map((id, i) => {
      if (!REGIONS.has(id.field)) return [none(), none()];
      const value = values[i];
      const listed = [...new Set([...names, ...(OWN[id.field] || []), ...(Array.isArray(value) ? value : [])])];
      const options = same(listed, data[i]) ? none() : listed;
      if (!names.length) return [options, none()];
      const wanted = likely(id, names);
      const renamed = renaming(before, names);
      if (renamed && Array.isArray(value) && value.includes(renamed[0])) {
        return [options, value.map((one) => (one === renamed[0] ? renamed[1] : one))];
      }
      if (renamed && value === renamed[0]) return [options, renamed[1]];
      return [options, empty(value) && wanted ? wanted : none()];
    });
    return [out.map((one) => one[0]), out.map((one) => one[1])];
  }

  /** What a field without a value should begin with. */
  function likely(id, names) {
    if (id.form === "ablation" || id.field === "token") return null;
    if (id.field === "segments") return names.length > 1 ? names : null;
    if (id.field === "target") return names.includes("target") ? ["target"] : null;
    const first = names.includes(id.field) ? id.field : names.includes("instruction") ? "instruction" : names[0];
    return id.form === "var" ? first : [first];
  }

  /** One region that left while one came is one that was renamed. */
  function renaming(before, now) {
    const gone = before.filter((name) => !now.includes(name));
    const come = now.filter((name) => !before.includes(name));
    return gone.length === 1 && come.length === 1 ? [gone[0], come[0]] : null;
  }

  /** Messages stand at their fields until the field is changed. */
  function wrong(found, _values, _heads, ids) {
    const all = found || {};
    if (triggers().some((id) => id === "steer-wrong")) {
      wrong.now = { ...all };
    } else {
      const changed = triggers().map((one) => (one.startsWith("{") ? JSON.parse(one).field : one.replace("steer-", "")));
      for (const one of changed) delete (wrong.now || {})[one];
    }
    const now = wrong.now || {};
    return [ids.map((id) => now[id.field] || null), now.heads || ""];
  }

  /** Nobody wants to remove every head of a model: ablations begin with a list. */
  const heads_kind = (method, kind) => (method === "ablation" && kind === "all" ? "typed" : none());

  // -- what is asked for ---------------------------------------------------------------------------------------------

  const editor = () => window.headscopePrompt && window.headscopePrompt.get("steer");

  /** What is in force: of the fields, those that are not as the method has them by default. */
  function asked(recipe, method, fields, heads, before, defaults) {
    const usual = (defaults || {})[method] || {};
    const own = Object.entries((fields || {})[method] || {}).filter(([name, value]) => !empty(value) && !same(value, usual[name]));
    const values = Object.fromEntries(own.sort(([a], [b]) => (a < b ? -1 : 1)));
    const { file, ...rest } = values;
    return { recipe, method, fields: rest, heads, file: file || null, before: before || null };
  }

  const signature = (what) => JSON.stringify([what.recipe, what.method, what.fields, what.heads, what.file, what.before]);

  // What was typed a moment ago is not in the stores yet.
  const typed = (id) => document.getElementById(id)?.value;
  function now(recipe) {
    const made = editor()?.recipe() || recipe;
    const tokens = typed("steer-new");
    return made && /^\d+$/.test(tokens || "") ? { ...made, new_tokens: Number(tokens) } : made;
  }
  const listed = (heads) => (heads && heads.kind === "typed" ? { ...heads, text: typed("steer-heads-text") ?? heads.text } : heads);

  function want(_run, _sweep, _task, recipe, method, fields, heads, before, field, values, target, task, n, split, controls, seed, drift, defaults) {
    const from = triggers()[0];
    if (!from || !context().triggered[0].value) return none();
    const kind = { "steer-go": "texts", "steer-sweep-go": "sweep", "steer-task-go": "task" }[from];
    const what = asked(now(recipe), method, fields, listed(heads), before, defaults);
    return {
      kind, asked: what, signature: signature(what), at: Date.now(),
      range: { field, values, target: kind === "sweep" ? target : "" },
      trial: { task, n, split, controls, seed, drift },
    };
  }

  /** Values from low to high, in even factors or even differences, in as few digits as tell them apart. */
  function fill(clicks, low, high, count, scale) {
    if (!clicks) return none();
    const [from, to, many] = [Number(low), Number(high), Math.max(2, Math.min(40, Math.round(Number(count) || 6)))];
    if (![from, to].every(Number.isFinite) || (scale === "log" && Math.min(from, to) <= 0)) return none();
    const at = (i) => (scale === "log" ? from * (to / from) ** (i / (many - 1)) : from + ((to - from) * i) / (many - 1));
    const menu = document.getElementById("steer-range-fill")?.closest("details");
    if (menu) menu.open = false;
    return [...new Set(Array.from({ length: many }, (_, i) => String(Number(at(i).toPrecision(3)))))].join(", ");
  }

  // -- the address ---------------------------------------------------------------------------------------------------

  function headsOf(heads, query) {
    if (!heads || heads.kind === "all") return;
    if (heads.kind === "typed") query.set("heads", heads.text || "none");
    else if (heads.file) {
      query.set("heads", heads.file);
      if (heads.kind === "top") query.set("top", heads.top ?? "");
    }
  }

  const TASK = { task: "instruction", n: 24, split: "validation", controls: 0, seed: 0 };
  let writing = null;

  function address(recipe, method, fields, heads, before, tab, field, values, target, task, n, split, controls, seed, drift, texts, swept, judged, defaults) {
    if (resumed()) return none();
    const what = asked(recipe, method, fields, heads, before, defaults);
    const stale = document.getElementById("steer-stale");
    if (stale) window.dash_clientside.set_props("steer-stale", { hidden: !texts || !texts.signature || !recipe || signature(what) === texts.signature });
    const query = new URLSearchParams();
    const run = (texts && texts.run) || (swept && swept.run) || new URLSearchParams(location.search).get("run");
    if (run) query.set("run", run);
    query.set("method", method);
    for (const [name, value] of Object.entries(what.fields)) {
      query.set(`set.${name}`, Array.isArray(value) ? value.join(",") : String(value));
    }
    if (what.file) query.set("edit", what.file);
    if (before) query.set("before", before);
    headsOf(heads, query);
    if (tab && tab !== "texts") query.set("tab", tab);
    if (tab !== "texts" || swept || judged) {
      if (field) query.set("sweep", field);
      if (values) query.set("values", values.replace(/\s+/g, ""));
      if (target) query.set("target", target);
      for (const [name, value] of Object.entries({ task, n, split, controls, seed })) if (!empty(value) && value !== TASK[name]) query.set(name, value);
      if (drift === false) query.set("drift", "no");
    }
    if (texts) query.set("texts", texts.name);
    if (swept) query.set("swept", swept.name);
    if (judged) query.set("judged", judged.name);
    // The form belongs to this run from now on: what is typed later survives a reload.
    if (texts && texts.run && editor()?.begun && editor().base !== texts.run) editor().fill(null, texts.run);
    clearTimeout(writing);
    // Browsers limit how often an address may change.
    writing = setTimeout(() => {
      if (location.pathname !== PATH || !document.getElementById("steer-go")) return;
      const text = query.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
      history.replaceState(history.state, "", `${PATH}?${text}`);
      try {
        sessionStorage.setItem(LAST, text);
      } catch {
        /* storage is off */
      }
    }, 200);
    return none();
  }

  /** Who comes without an address goes on where this tab was. */
  function resumed() {
    const button = document.getElementById("steer-go");
    if (!button || button.dataset.begun) return false;
    button.dataset.begun = "yes";
    wrong.now = {}; // of a page that was left
    let last = null;
    try {
      last = sessionStorage.getItem(LAST);
    } catch {
      /* storage is off */
    }
    if (location.search || !last) return false;
    history.replaceState(history.state, "", `${PATH}?${last}`);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    return true;
  }

  /** Go to a page without loading the application anew, as its own links do. */
  function go(href) {
    if (!href) return none();
    history.pushState({}, "", href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
    return none();
  }

  const tab = (value) => value === "texts";
  /** Where everything stands in one column, a result comes into sight when it is there. */
  function arrived() {
    if (matchMedia("(max-width: 1060px)").matches) document.getElementById("steer-head")?.scrollIntoView({ block: "start" });
  }

  const to_texts = (ask) => (ask ? "texts" : none());

  // -- one token -----------------------------------------------------------------------------------------------------

  const minus = (text) => text.replace("-", "−");
  const percent = (logp) => {
    const p = 100 * Math.exp(logp);
    return p >= 0.1 ? `${p.toFixed(1)} %` : p > 0 ? `${p.toExponential(0)} %` : "0 %";
  };

  function read(token) {
    for (const one of document.querySelectorAll(".steer-texts .is-read")) one.classList.remove("is-read");
    const place = document.getElementById("steer-read");
    if (!token || !place) return;
    const [base, steered] = [Number(token.dataset.base), Number(token.dataset.steered)];
    const change = steered - base;
    const sign = change > 0 ? "+" : "";
    place.replaceChildren();
    const add = (text, kind) => place.append(Object.assign(document.createElement("span"), { textContent: text, className: kind || "" }));
    add(`token ${Number(token.dataset.step) + 1}`, "soft");
    add(token.textContent, "read-token");
    add(`log p ${minus(base.toFixed(2))} → ${minus(steered.toFixed(2))}`);
    add(minus(`${sign}${change.toFixed(2)} nats`), change > 0.005 ? "up" : change < -0.005 ? "down" : "");
    add(`p ${percent(base)} → ${percent(steered)}`, "soft");
    token.classList.add("is-read");
    const row = document.querySelector(`.steps tr[data-step="${token.dataset.step}"]`);
    if (row) row.classList.add("is-read");
  }

  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.(".tok");
    if (token) read(token);
    const row = event.target.closest?.(".steps tbody tr");
    if (row) {
      for (const one of document.querySelectorAll(".steer-texts .is-read")) one.classList.remove("is-read");
      for (const one of document.querySelectorAll(`.tok[data-step="${row.dataset.step}"]`)) one.classList.add("is-read");
    }
  });
  document.addEventListener("focusin", (event) => {
    if (event.target.classList?.contains("tok")) read(event.target);
  });
  document.addEventListener("keydown", (event) => {
    const token = event.target.closest?.(".tok");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!token || (!step && !["ArrowUp", "ArrowDown", "Home", "End"].includes(event.key))) return;
    event.preventDefault();
    const own = [...token.closest(".tokens").querySelectorAll(".tok")];
    let next;
    if (step) next = own[own.indexOf(token) + step];
    else if (event.key === "Home") next = own[0];
    else if (event.key === "End") next = own.at(-1);
    else {
      const other = token.closest(".tokens").dataset.side === "base" ? "steered" : "base";
      next = document.getElementById(`steer-${other}-${token.dataset.step}`);
    }
    if (!next) return;
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  Object.assign(window.dash_clientside, {
    headscope_steer: { keep, regions, wrong, heads_kind, want, fill, address, go, tab, to_texts, arrived },
  });
})();
