// Home: times in words, and the way into the tour.
(() => {
  "use strict";

  // -- how long ago ------------------------------------------------------------------------------------------------

  const SPANS = [[60, "second"], [60, "minute"], [24, "hour"], [7, "day"], [Infinity, "week"]];
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "long" });

  function ago(then, now) {
    let far = Math.max(0, (now - then) / 1000);
    if (far < 50) return "just now";
    for (const [most, unit] of SPANS) {
      if (Math.round(far) < most) return words.format(-Math.round(far), unit);
      far /= most;
    }
    return "";
  }

  function tell() {
    const now = Date.now();
    for (const time of document.querySelectorAll("time.ago")) {
      const text = ago(Date.parse(time.dateTime), now);
      if (time.textContent !== text) time.textContent = text;
    }
  }

  // The list is drawn by Dash whenever it likes.
  let asked = false;
  new MutationObserver(() => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; tell(); });
  }).observe(document.documentElement, { childList: true, subtree: true });
  setInterval(tell, 30_000);

  // -- callbacks ---------------------------------------------------------------------------------------------------

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    headscope_home: {
      /** The tour's prompt was run: go there. */
      begin(run) {
        if (run) window.headscopeTour.begin(run);
        return undefined;
      },
    },
  });
})();
