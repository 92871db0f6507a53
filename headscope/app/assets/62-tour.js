// The tour: a card over the real pages. The address says which step it is (`?tour=3`), so a reload or a link comes back to it.
(() => {
  "use strict";

  const RUN = "headscope-tour-run"; // the run that this tab is shown
  let run = null;
  let steps = null;
  let at = 0; // from 1; 0 is no tour
  let card = null;
  let marked = null;
  let chosen = false; // the reader moved the card: it stays where it is

  const storage = {
    get: () => { try { return sessionStorage.getItem(RUN); } catch { return null; } },
    set: (value) => { try { value ? sessionStorage.setItem(RUN, value) : sessionStorage.removeItem(RUN); } catch { /* storage is off */ } },
  };

  // -- address -----------------------------------------------------------------------------------------------------

  /** The address with the step in it, or without. */
  function stepped(address) {
    const url = new URL(address, location.href);
    at ? url.searchParams.set("tour", at) : url.searchParams.delete("tour");
    // As the pages write it, not as forms are sent.
    const query = url.search.replaceAll("%3A", ":").replaceAll("%2F", "/").replaceAll("%2C", ",");
    return `${url.pathname}${query}${url.hash}`;
  }

  // Pages write their state into the address, all of it: the step stays in it nevertheless.
  for (const method of ["pushState", "replaceState"]) {
    const original = history[method].bind(history);
    history[method] = (state, title, address) =>
      original(state, title, at && address !== undefined && address !== null ? stepped(address) : address);
  }

  /** Go to a page without loading the application anew, as its own links do. */
  function visit(href) {
    history.pushState({}, "", href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  }

  // -- the card ----------------------------------------------------------------------------------------------------

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function build() {
    const title = element("h2", { id: "tour-title", className: "tour-title" });
    const text = element("p", { id: "tour-text", className: "tour-text" });
    const count = element("span", { className: "tour-count" });
    const bar = element("div", { className: "tour-bar" }, element("div", {}));
    bar.setAttribute("aria-hidden", "true");
    const button = (label, name, work) => {
      const made = element("button", { type: "button", textContent: label, className: `tour-button tour-${name}` });
      made.addEventListener("click", work);
      return made;
    };
    const back = button("Back", "back", () => go(at - 1));
    const next = button("Next", "next", () => (at < steps.length ? go(at + 1) : end()));
    const again = button("Show this step", "again", () => go(at));
    const side = button("⇄", "side", () => { chosen = true; made.classList.toggle("is-left"); });
    side.setAttribute("aria-label", "Move the card to the other side");
    side.title = "Move to the other side";
    const stop = button("End", "end", end);
    const made = element("section", { className: "tour", tabIndex: -1 },
      bar, element("div", { className: "tour-head" }, title, count, side, stop), text, element("div", { className: "tour-foot" }, again, back, next));
    made.setAttribute("role", "dialog");
    made.setAttribute("aria-labelledby", "tour-title");
    made.setAttribute("aria-describedby", "tour-text");
    made.addEventListener("keydown", (event) => {
      if (event.key === "Escape") end();
      // The arrows and letters of the viewer are for the viewer.
      event.stopPropagation();
    });
    document.body.append(made);
    return { element: made, title, text, count, bar: bar.firstChild, back, next };
  }

  function show(focus) {
    card ??= build();
    const step = steps?.[at - 1];
    card.title.textContent = step ? step.title : "The tour";
    card.text.textContent = step ? step.text : "The run of the tour is being made …";
    card.count.textContent = step ? `${at} of ${steps.length}` : "";
    card.bar.style.width = `${steps ? (100 * at) / steps.length : 0}%`;
    card.back.disabled = !step || at === 1;
    card.next.disabled = !step;
    card.next.textContent = step && at === steps.length ? "Done" : "Next";
    if (focus) card.element.focus({ preventScroll: true });
    mark();
  }

  /** Outline what the step is about, once it is there. */
  function mark() {
    const wanted = at && steps?.[at - 1]?.mark ? document.querySelector(steps[at - 1].mark) : null;
    if (wanted === marked) return;
    marked?.classList.remove("tour-mark");
    marked = wanted;
    if (!marked && !chosen) card?.element.classList.remove("is-left");
    marked?.classList.add("tour-mark");
    if (marked && !chosen) aside();
  }

  /** Stand on the side that hides less of what the step is about. */
  function aside() {
    const hidden = (left) => {
      card.element.classList.toggle("is-left", left);
      const [a, b] = [card.element.getBoundingClientRect(), marked.getBoundingClientRect()];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      return Math.max(0, wide) * Math.max(0, high);
    };
    const [right, left] = [hidden(false), hidden(true)];
    card.element.classList.toggle("is-left", left < right);
  }

  let looking = false;
  const watcher = new MutationObserver(() => {
    if (looking) return;
    looking = true;
    requestAnimationFrame(() => { looking = false; mark(); });
  });

  // -- steps -------------------------------------------------------------------------------------------------------

  function go(to) {
    if (!steps) return;
    at = Math.min(Math.max(1, to), steps.length);
    visit(steps[at - 1].href);
    show(false);
  }

  function end() {
    const leave = card?.element.contains(document.activeElement);
    at = 0;
    steps = null;
    storage.set(null);
    watcher.disconnect();
    mark();
    card?.element.remove();
    card = null;
    history.replaceState(history.state, "", stepped(location.href));
    if (leave) document.getElementById("content")?.focus({ preventScroll: true });
  }

  /** Fetch the steps; the run may have to be made first, by the page that shows it. */
  async function fetched() {
    for (let tries = 0; at && tries < 400; tries++) {
      let answer;
      try {
        answer = await fetch(`/api/tour/${encodeURIComponent(run)}`);
      } catch {
        return fail("The server does not answer.");
      }
      if (answer.ok) return (await answer.json()).steps;
      if (answer.status !== 410) return fail((await answer.json()).error);
      await new Promise((done) => setTimeout(done, 1500));
    }
    return null;
  }

  function fail(why) {
    if (card) card.text.textContent = why;
    return null;
  }

  async function begin(named, step = 1, arrive = true) {
    run = named;
    at = step;
    storage.set(run);
    watcher.observe(document.documentElement, { childList: true, subtree: true });
    show(true);
    const found = await fetched();
    if (!found || run !== named || !at) return;
    steps = found;
    at = Math.min(at, steps.length);
    if (arrive) go(at);
    show(true);
  }

  window.headscopeTour = { begin, end };

  // -- where a reload, a link or the back button leads ---------------------------------------------------------------

  const asked = () => Number(new URLSearchParams(location.search).get("tour")) || 0;

  function resume() {
    const step = asked();
    const named = new URLSearchParams(location.search).get("run") || storage.get();
    if (step > 0 && named) begin(named, Math.floor(step), false);
  }

  addEventListener("popstate", () => {
    const step = asked();
    if (!at || !steps || !step || step === at) return;
    at = Math.min(step, steps.length);
    show(false);
  });
  addEventListener("_dashprivate_pushstate", () => {
    if (at && !asked()) history.replaceState(history.state, "", stepped(location.href));
  });
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", resume) : resume();
})();
