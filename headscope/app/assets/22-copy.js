// Copying, for buttons that name the element whose text they copy (components/copy.py) and for other scripts.
(() => {
  "use strict";

  /** Put a text on the clipboard; returns whether the browser let us. */
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Pages that are not served from this machine, nor over TLS, have no clipboard.
      const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copies]");
    if (!button || button.dataset.busy) return;
    const text = button.dataset.copies ? document.getElementById(button.dataset.copies)?.textContent || "" : location.href;
    const before = button.textContent;
    button.dataset.busy = "yes";
    button.textContent = !text ? "Nothing to copy" : (await copy(text)) ? button.dataset.said : "Not allowed here";
    setTimeout(() => {
      button.textContent = before;
      delete button.dataset.busy;
    }, 1500);
  });

  window.headscopeCopy = copy;
})();
