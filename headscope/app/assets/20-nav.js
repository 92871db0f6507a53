// The navigation shows which page is open; Dash swaps pages without loading them anew.
(() => {
  const mark = () => {
    for (const link of document.querySelectorAll(".nav-link")) {
      const here = new URL(link.href).pathname === location.pathname;
      here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    }
  };
  new MutationObserver(mark).observe(document.documentElement, { childList: true, subtree: true });
  addEventListener("popstate", mark);
  // A change of the address, be it of the part behind #, would lay the page out again.
  addEventListener("click", (event) => {
    if (!event.target.closest?.(".skip")) return;
    event.preventDefault();
    document.getElementById("content").focus();
  });
})();
