// Explore: asks for runs, mounts the viewer on them, and keeps the address and the view in step.
(() => {
  "use strict";

  const PATH = "/explore";
  const LAST = "headscope-explore-last"; // the run of this tab that is shown when one comes back
  const element = (part) => document.getElementById(`explore-${part}`);
  const set = (part, properties) => dash_clientside.set_props(`explore-${part}`, properties);

  let now = null; // what is shown: {run, viewer, root, data}
  let writing = null; // timer of the address

  // -- address -----------------------------------------------------------------------------------------------------

  function address(run, state) {
    const query = state ? Headscope.toQuery(state).replace(/^[?&]/, "") : "";
    return run ? `${PATH}?run=${run}${query ? `&${query}` : ""}` : PATH;
  }

  const runOf = () => new URLSearchParams(location.search).get("run");

  /** What the address says of the view; null if it names no head. */
  function stateOf() {
    const query = new URLSearchParams(location.search);
    if (!query.has("head")) return null;
    query.delete("run");
    return Headscope.fromQuery(query.toString());
  }

  function write(state) {
    // Browsers limit how often an address may change.
    clearTimeout(writing);
    const run = now?.run;
    writing = setTimeout(() => {
      if (now && now.run === run && location.pathname === PATH) history.replaceState(history.state, "", address(run, state));
    }, 200);
  }

  function remember(run) {
    try {
      run ? sessionStorage.setItem(LAST, run) : sessionStorage.removeItem(LAST);
    } catch {
      /* storage is off */
    }
  }

  function remembered() {
    try {
      return sessionStorage.getItem(LAST);
    } catch {
      return null;
    }
  }

  // -- the view ----------------------------------------------------------------------------------------------------

  /**
   * Regions in the order in which they were marked, then those that headscope adds: the form's colours hold below.
   * A chat's whole message is left out, which would underline everything.
   */
  function ordered(regions, recipe) {
    const marked = recipe.regions.map((region) => region[0]);
    const added = Object.keys(regions).filter((name) => name !== "prompt" || !recipe.chat);
    const names = [...new Set([...marked, ...added])];
    return Object.fromEntries(names.filter((name) => name in regions).map((name) => [name, regions[name]]));
  }

  function source({ run, stats, sets, recipe }) {
    const base = Headscope.http(`/api/run/${run}`);
    const watched = Object.create(base);
    let heads = [];
    for (const method of ["stat", "thumbs", "tile", "row", "column", "neuron"]) {
      watched[method] = async (...asked) => {
        try {
          return await base[method](...asked);
        } catch (error) {
          if (error?.status === 410) again(run);
          throw error;
        }
      };
    }
    watched.meta = async () => {
      const meta = await base.meta();
      heads = meta.heads;
      return { ...meta, regions: ordered(meta.regions, recipe), stats: [...meta.stats, ...stats, ...sets] };
    };
    // A head set is a map of ones, which needs no server.
    const stat = watched.stat;
    watched.stat = async (name, ...rest) => {
      const set = sets.find((one) => one.name === name);
      if (!set) return stat(name, ...rest);
      const width = Math.max(...heads);
      const map = Float32Array.from({ length: heads.length * width }, (_, i) => (i % width < heads[Math.floor(i / width)] ? 0 : NaN));
      for (const [layer, head] of set.heads) map[layer * width + head] = 1;
      return map;
    };
    return watched;
  }

  /** The run left the server's memory while it was looked at: make it again, once. */
  function again(run) {
    if (now?.run !== run || now.asked) return;
    now.asked = true;
    ask({ run });
  }

  function ask(what) {
    set("ask", { data: { ...what, at: Date.now() } });
  }

  function unmount() {
    clearTimeout(writing);
    now?.viewer.destroy();
    now = null;
  }

  function mount(data, state) {
    const root = element("view");
    if (now && now.run === data.run && now.root === root && !now.asked) {
      now.data = data;
      if (state) now.viewer.setState(state);
      return;
    }
    unmount();
    root.replaceChildren();
    const numbers = source(data);
    const viewer = Headscope.mount(root, numbers, { state: state || {}, onState: write, theme: "auto" });
    now = { run: data.run, viewer, root, data, asked: false };
    if (!state) begin(viewer, numbers, data);
  }

  /** Where nothing says which head to look at: the one that looks most at what was marked, else the largest sink. */
  async function begin(viewer, numbers, { recipe }) {
    const stat = recipe.regions.length ? `mass:${recipe.regions[0][0]}` : "sink";
    let map, meta;
    try {
      [map, meta] = await Promise.all([numbers.stat(stat), numbers.meta()]);
    } catch {
      return; // the viewer tells its own errors
    }
    const best = map.reduce((at, value, i) => (value > (map[at] ?? -Infinity) || Number.isNaN(map[at]) ? i : at), 0);
    const width = Math.max(...meta.heads);
    const { layer, head } = viewer.getState();
    if (now?.viewer === viewer && !layer && !head) viewer.setState({ stat, layer: Math.floor(best / width), head: best % width });
  }

  /** With a view the prompt is one line; it opens again to be changed. */
  function fold(folded) {
    const there = Boolean(now || element("line").dataset.run);
    set("prompt", { hidden: folded && there });
    set("line", { hidden: !there });
    const button = element("change");
    button.textContent = folded ? "Edit prompt" : "Fold prompt";
    button.setAttribute("aria-expanded", String(!folded));
    button.setAttribute("aria-controls", "explore-prompt");
    document.querySelector(".explore").classList.toggle("is-viewing", there);
  }

  /** The form shows itself a few frames later. */
  function focusText(frames = 30) {
    const area = document.getElementById("explore-text");
    area?.focus();
    if (area && document.activeElement !== area && frames) requestAnimationFrame(() => focusText(frames - 1));
  }

  function done(text) {
    const place = element("done");
    place.textContent = text;
    clearTimeout(place.timer);
    place.timer = setTimeout(() => { place.textContent = ""; }, 2500);
  }

  const copy = async (text, said) => done((await window.headscopeCopy(text)) ? said : "The browser did not let this page copy.");

  /** What of a view is kept when another prompt is shown: the head and how it is drawn, not the tokens. */
  function carried({ layer, head, stat, reduce, scale, thumbs }, recipe) {
    const known = !stat?.startsWith("mass:") || recipe.regions.some((region) => `mass:${region[0]}` === stat);
    return { layer, head, stat: known ? stat : null, reduce, scale, thumbs };
  }

  // -- callbacks ---------------------------------------------------------------------------------------------------

  const nothing = undefined;

  const headscope_explore = {
    /** The page is there: show the run of the address, or the tab's last one. */
    start(begin) {
      if (now && now.root !== element("view")) unmount();
      if (!begin) return dash_clientside.no_update;
      if (begin.data) headscope_explore.ran(begin.data);
      else if (begin.run) ask({ run: begin.run });
      else if (begin.state === "none" && remembered()) ask({ run: remembered(), only_kept: true });
      return Date.now();
    },
    run(clicks, recipe) {
      if (clicks) ask({ recipe });
      return nothing;
    },
    /** A run is there: show it. */
    ran(data) {
      if (!data || !element("view")) return nothing;
      const here = runOf() === data.run;
      const before = now && now.data.recipe.model === data.recipe.model ? carried(now.viewer.getState(), data.recipe) : null;
      if (!here) {
        const next = address(data.run, before);
        // Coming back to the page resumes the tab's last run: that is no step of its own.
        data.by === "run" ? history.replaceState(history.state, "", next) : history.pushState(null, "", next);
      }
      // A run that was made again goes on as it was looked at; the address may be a moment behind.
      mount(data, now?.run === data.run ? now.viewer.getState() : here ? stateOf() : before);
      const editor = window.headscopePrompt.get("explore");
      // A form that has not begun yet will be filled with what the tab remembers, if that belongs to this run.
      if (editor?.begun) editor.fill(data.by === "run" && editor.base !== data.run ? data.recipe : null, data.run);
      element("line").dataset.run = data.run;
      set("steer", { href: `/steer?run=${data.run}` });
      remember(data.run);
      fold(true);
      set("again", { data: Date.now() });
      return nothing;
    },
    change(clicks) {
      if (!clicks) return nothing;
      const folded = element("prompt").hidden;
      fold(!folded);
      if (folded) focusText();
      return nothing;
    },
    more(clicks) {
      if (!clicks || !now) return nothing;
      const { recipe, length, ended } = now.data;
      if (ended) return (done("The model has ended its text."), nothing);
      const limit = window.headscopePrompt.get("explore")?.counts?.limit;
      const room = limit ? limit - length : 16;
      if (room <= 0) return (done("The context is full."), nothing);
      const more = { new_tokens: recipe.new_tokens + Math.min(16, room) };
      window.headscopePrompt.get("explore")?.fill(more);
      ask({ recipe: { ...recipe, ...more } });
      return nothing;
    },
    share(clicks) {
      if (clicks && now) copy(location.origin + address(now.run, now.viewer.getState()), "Link copied");
      return nothing;
    },
    cell(clicks) {
      if (clicks && now) copy(now.data.cell, "Cell copied");
      return nothing;
    },
  };

  window.dash_clientside = Object.assign({}, window.dash_clientside, { headscope_explore });

  // -- back and forward: within this page without laying it out anew -----------------------------------------------

  function follow(event) {
    if (location.pathname !== PATH || !element("view")) return;
    event.stopImmediatePropagation();
    const run = runOf();
    if (run && run === now?.run) now.viewer.setState(stateOf() || {});
    else if (run) ask({ run });
    else {
      unmount();
      element("view").replaceChildren();
      delete element("line").dataset.run;
      remember(null);
      fold(false);
    }
  }
  addEventListener("popstate", follow);
  addEventListener("_dashprivate_pushstate", follow);

  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target.id === "explore-text" && now) {
      fold(true);
      now.root.querySelector("[tabindex], button")?.focus();
    }
  });
})();
