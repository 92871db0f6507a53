// Rank: the table and the map of heads, what is picked in them, and the address that says so.
window.dash_clientside = window.dash_clientside || {};
window.dashAgGridFunctions = window.dashAgGridFunctions || {};
window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {};
(() => {
  "use strict";
  const missing = "–";

  // -- numbers, as reports write them ------------------------------------------------------------------------------

  const minus = (text) => text.replace("-", "−");
  function number(value) {
    if (value === null || value === undefined) return missing;
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size >= 10) return minus(value.toLocaleString("en").replaceAll(",", "\u202f"));
    if (size < 0.0005) return value > 0 ? "< 0.001" : "> −0.001";
    return minus(size < 10 ? value.toFixed(3) : value.toPrecision(4));
  }
  const p = (value) => (value === null || value === undefined ? missing : value < 0.001 ? "< 0.001" : value.toFixed(3));
  const place = (name) => {
    const found = /^L(\d+)H(\d+)$/.exec(name);
    return found ? Number(found[1]) * 10_000 + Number(found[2]) : 0;
  };

  Object.assign(window.dashAgGridFunctions, {
    headscopeNumber: (params) => number(params.value),
    headscopeP: (params) => p(params.value),
    headscopeYes: (params) => (params.value ? "passes" : ""),
    headscopeByPlace: (a, b) => place(a) - place(b),
    headscopeFind: (params) => `${params.data.name} ${params.data.id}`,
    headscopeNothing: () => "",
    headscopeTheme: (theme) => theme.withParams({
      accentColor: "var(--accent)", backgroundColor: "var(--panel)", foregroundColor: "var(--ink)",
      textColor: "var(--ink)", borderColor: "var(--line)", chromeBackgroundColor: "var(--paper)",
      headerBackgroundColor: "var(--paper)", headerTextColor: "var(--soft)", headerFontWeight: 500,
      oddRowBackgroundColor: "var(--panel)", rowHoverColor: "var(--wash)",
      selectedRowBackgroundColor: "color-mix(in srgb, var(--accent) 12%, var(--panel))",
      menuBackgroundColor: "var(--panel)", menuTextColor: "var(--ink)", inputBackgroundColor: "var(--paper)",
      fontFamily: "inherit", fontSize: 13, headerFontSize: 12, spacing: 5, rowHeight: 27, headerHeight: 32,
      borderRadius: 3, wrapperBorderRadius: 3, checkboxBorderRadius: 2, iconSize: 14, cellHorizontalPadding: 9,
      browserColorScheme: "inherit", columnBorder: false, wrapperBorder: true,
      checkboxCheckedBackgroundColor: "var(--accent)", checkboxUncheckedBorderColor: "var(--grey)",
    }),
  });

  // -- the interval, drawn -----------------------------------------------------------------------------------------

  function interval(props) {
    const make = React.createElement, row = props.data;
    if (!row || row.score === null) return make("span", { className: "soft" }, missing);
    const at = (value) => `${(100 * (value - props.low)) / (props.high - props.low)}%`;
    const marks = [];
    if (props.low < 0) marks.push(make("line", { key: "zero", x1: at(0), x2: at(0), y1: 3, y2: 17, className: "mark-zero" }));
    if (row.null_mean !== null) {
      marks.push(make("line", { key: "null", x1: at(row.null_mean), x2: at(row.null_mean), y1: 4, y2: 16, className: "mark-null" }));
    }
    const known = row.ci_low !== null && row.ci_high !== null;
    if (known) marks.push(make("line", { key: "bar", x1: at(row.ci_low), x2: at(row.ci_high), y1: 10, y2: 10, className: "mark-bar" }));
    marks.push(make("circle", { key: "dot", cx: at(row.score), cy: 10, r: 3.4, className: row.selected ? "mark-dot passes" : "mark-dot" }));
    const text = known ? `${number(row.score)}, 95 % from ${number(row.ci_low)} to ${number(row.ci_high)}` : `${number(row.score)}, no interval`;
    return make("svg", { className: "interval", role: "img", "aria-label": text }, make("title", null, text), ...marks);
  }
  window.dashAgGridComponentFunctions.HeadscopeInterval = interval;

  // -- what is picked ----------------------------------------------------------------------------------------------

  const none = () => window.dash_clientside.no_update;
  const same = (a, b) => a.length === b.length && new Set([...a, ...b]).size === a.length;
  const cause = () => {
    const found = window.dash_clientside.callback_context.triggered;
    return found.length ? found[0].prop_id : "";
  };

  // One callback for all that changes the selection: each source tells what it knows, the store keeps the order.
  function pick(rows, click, dot, top, passing, clear, asked, data, heads, k) {
    const from = cause();
    const known = heads || [];
    const ids = new Set((data || []).map((row) => row.id));
    let made = known, scroll = none();
    const flip = (id) => {
      if (!ids.has(id)) return known;
      scroll = { rowId: id, rowPosition: "middle" };
      return known.includes(id) ? known.filter((one) => one !== id) : [...known, id];
    };
    if (from.startsWith("rank-table.selectedRows")) {
      const now = Array.isArray(rows) ? rows.map((row) => row.id) : (rows && rows.ids) || [];
      // Heads of a ranking that is not loaded yet stay picked.
      if (!ids.size || same(now, known.filter((id) => ids.has(id)))) return [none(), none(), none(), null];
      made = [...known.filter((id) => now.includes(id)), ...now.filter((id) => !known.includes(id))];
      return [made, none(), none(), null];
    }
    if (from.startsWith("rank-map") && click) made = flip(`${click.points[0].x}.${click.points[0].y}`);
    else if (from.startsWith("rank-dot") && dot) made = flip(dot.id);
    else if (from.startsWith("rank-top") && top) {
      made = (data || []).filter((row) => row.score !== null).slice(0, k || 20).map((row) => row.id);
    } else if (from.startsWith("rank-passing") && passing) {
      made = (data || []).filter((row) => row.selected).map((row) => row.id);
    } else if (from.startsWith("rank-clear") && clear) made = [];
    else if (from.startsWith("rank-ask") && asked) made = asked.heads;
    else if (from.startsWith("rank-table.rowData") || !from) {
      // Another ranking of the same model keeps what is picked.
      made = data && data.length ? known.filter((id) => ids.has(id)) : known;
      return [same(made, known) ? none() : made, { ids: made }, none(), null];
    } else return [none(), none(), none(), null];
    return [made, { ids: made.filter((id) => ids.has(id)) }, scroll, null];
  }

  // A dot of the comparison is a head as well.
  function dot(clicks) {
    const found = window.dash_clientside.callback_context.triggered.map((one) => one.value).find((one) => one);
    const name = found && /^L(\d+)H(\d+)$/.exec(found.points[0].text || "");
    return name ? { id: `${name[1]}.${name[2]}`, at: performance.now() } : none();
  }

  // Explore shows the run that this tab showed last, coloured by the open ranking.
  function explore(heads, file, data) {
    const head = (heads && heads[0]) || (data && data.length ? data[0].id : null);
    return file && head ? `/explore?head=${head}&stat=${encodeURIComponent(`ranking:${file}`)}` : "/explore";
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-explore]");
    if (!link) return;
    let run = null;
    try {
      run = sessionStorage.getItem("headscope-explore-last");
    } catch { /* storage is off */ }
    const address = new URL(link.href);
    if (run) address.searchParams.set("run", run);
    link.href = address.pathname + address.search;
  }, true);

  function picked(heads) {
    const names = (heads || []).map((id) => `L${id.replace(".", "H")}`);
    const shown = names.slice(0, 14).join("  ");
    const text = names.length ? `${names.length} picked` : "None picked";
    return [text, names.length > 14 ? `${shown} …` : shown, !names.length, !names.length, null];
  }

  // -- the map -----------------------------------------------------------------------------------------------------

  function draw_map(figure, scheme, heads, dark, id) {
    const [drawn, hidden, style] = window.dash_clientside.headscope_figure.draw(figure, scheme, dark, id);
    if (hidden) return [drawn, hidden, style];
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const places = (heads || []).map((one) => one.split(".").map(Number));
    if (places.length) {
      drawn.data.push({ x: places.map(([layer]) => layer), y: places.map(([, head]) => head), mode: "markers", type: "scatter",
        name: "picked", hoverinfo: "skip", showlegend: false,
        marker: { size: 9, color: colour("--ink"), line: { color: colour("--paper"), width: 2 } } });
    }
    // Above the table there must be room for the table.
    const most = innerWidth < 1600 ? Math.max(220, 0.4 * innerHeight) : Infinity;
    if (drawn.layout.height > most) {
      drawn.layout.height = most;
      style.height = `${most}px`;
      drawn.layout.yaxis.dtick = Math.max(drawn.layout.yaxis.dtick || 1, 2);
    }
    drawn.layout.uirevision = "map";
    return [drawn, false, style];
  }

  // -- columns and search ------------------------------------------------------------------------------------------

  function show_columns(columns, shown) {
    if (!columns) return none();
    const fixed = new Set(["rank", "name", "layer"]);
    return columns.map((one) => ({ ...one, hide: !(fixed.has(one.colId) || (shown || []).includes(one.colId)) }));
  }

  function search(text, only, options, model) {
    const typed = (text || "").trim().toUpperCase().replace(/[,:\s]+/, ".");
    const filter = { ...(model || {}) };
    if (only) filter.selected = { filterType: "number", type: "equals", filter: 1 };
    else delete filter.selected;
    return [{ ...options, quickFilterText: typed }, filter];
  }

  // -- which rankings are open -------------------------------------------------------------------------------------

  function open_ranking(_clicks, done, uploaded, file) {
    const found = window.dash_clientside.callback_context.triggered.find((one) => one.value);
    if (!found) return none();
    if (found.prop_id.startsWith("rank-done")) return done && done.file ? done.file : none();
    if (found.prop_id.startsWith("rank-uploaded")) return uploaded || none();
    const id = JSON.parse(found.prop_id.slice(0, found.prop_id.lastIndexOf(".")));
    return id.ranking === file ? none() : id.ranking;
  }

  // -- the address -------------------------------------------------------------------------------------------------

  let writing = null;
  function address(file, beside, heads, tab, k, colour, columns, set, usual) {
    const query = new URLSearchParams();
    const put = (name, value, standard) => {
      if (value !== null && value !== undefined && value !== "" && value !== standard) query.set(name, value);
    };
    put("file", file);
    put("with", (beside || []).join(","));
    put("heads", (heads || []).join(","));
    put("tab", tab, "heads");
    put("k", k, 20);
    put("colour", colour, "score");
    put("columns", columns && usual && usual.length && !same(columns, usual) ? columns.join(",") : null);
    put("set", set);
    const text = query.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
    clearTimeout(writing);
    // Browsers limit how often an address may change.
    writing = setTimeout(() => {
      if (location.pathname === "/rank") history.replaceState(history.state, "", text ? `/rank?${text}` : "/rank");
    }, 150);
    return none();
  }

  // Head sets and new rankings are not about the ranking that is open.
  const about_open = (tab) => tab === "sets" || tab === "new";

  // The field that Dash hides inside an upload has no name; the button before it is what one reaches.
  new MutationObserver(() => {
    const field = document.querySelector("#rank-upload input:not([aria-label])");
    if (!field) return;
    field.setAttribute("aria-label", "File of a ranking");
    field.tabIndex = -1;
  }).observe(document.documentElement, { childList: true, subtree: true });

  // Places inside the page are gone to without the address: Dash takes a change of it for a way to another page.
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[href^='#']");
    if (!link || location.pathname !== "/rank") return;
    const target = document.getElementById(link.getAttribute("href").slice(1));
    if (!target) return;
    event.preventDefault();
    if (!target.hasAttribute("tabindex")) target.tabIndex = -1;
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "start" });
  });

  // A menu closes when one goes elsewhere.
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });

  Object.assign(window.dash_clientside, {
    headscope_rank: { pick, dot, picked, explore, draw_map, show_columns, search, open_ranking, address, about_open },
  });
})();
