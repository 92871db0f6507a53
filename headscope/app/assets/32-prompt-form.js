// The prompt's form in Dash: its fields and the editor become one recipe; lists that drop down.
(() => {
  "use strict";

  const { Editor, store, pure } = window.headscopePrompt;

  const editors = new Map();
  const formOf = () => dash_clientside.callback_context.inputs_list.flat()[0].id.replace(/-[a-z]+$/, "");

  function editorOf(name, limit) {
    const root = document.getElementById(`${name}-editor`);
    let editor = editors.get(name);
    if (editor && editor.root !== root) {
      editor.destroy();
      editors.delete(name);
      editor = undefined;
    }
    if (!editor && root) {
      editor = new Editor(root, name, limit ?? (Number(root.dataset.limit) || 1e6));
      editors.set(name, editor);
    }
    return editor;
  }

  // Lists that drop down close when one looks elsewhere, presses Escape, or has chosen.
  const close = (menu, back) => {
    menu.open = false;
    if (back) menu.querySelector("summary").focus();
  };
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".menu[open]")) {
      if (!menu.contains(event.target) || event.target.closest(".menu-item")) close(menu, false);
    }
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.target.closest?.(".menu[open]");
    if (!menu) return;
    if (event.key === "Escape") close(menu, true);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const items = [...menu.querySelectorAll(".menu-item")];
    if (!step || !items.length || event.target.matches("input")) return;
    event.preventDefault();
    const at = items.indexOf(document.activeElement);
    items[at < 0 ? (step > 0 ? 0 : items.length - 1) : (at + step + items.length) % items.length].focus();
  });

  addEventListener("pagehide", () => editors.forEach((editor) => editor.root.isConnected && editor.flush()));

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    headscope_prompt: {
      /** Fill the form: with what the layout or a file gives, or with what the tab remembers. */
      begin(draft) {
        const name = formOf();
        const editor = editorOf(name);
        if (!editor || !draft) return dash_clientside.no_update;
        const kept = !editor.begun && draft.first ? store.get(name) : null;
        editor.begun = true;
        const same = kept && kept.recipe && (!draft.base || kept.base === draft.base);
        if (same) editor.fill({ ...(draft.defaults || {}), ...kept.recipe }, kept.base);
        else editor.fill({ ...(draft.first ? draft.defaults : {}), ...(draft.fields || {}) }, draft.base);
        if (!draft.first && draft.fields) editor.say("Opened.");
        return Date.now();
      },
      settle(model, chat, system, fresh, edit) {
        const name = formOf();
        const editor = editorOf(name);
        const chats = chat === "chat";
        // Before the form is filled its fields hold what the layout wrote, which the tab may know better.
        if (editor?.begun) {
          const settings = { model, chat: chats, system, new_tokens: Number(fresh) || 0, edit };
          if (settings.model !== editor.settings.model) editor.counts = null;
          editor.settings = settings;
          editor.drawStatus();
          editor.later();
        }
        return !chats;
      },
      counted(found) {
        const name = formOf();
        const editor = editorOf(name);
        if (!editor || !found) return undefined;
        editor.counts = found;
        editor.drawChips(pure.namesOf(editor.regions));
        editor.drawStatus();
        if (found.state === "unread" && found.loaded) setTimeout(() => dash_clientside.set_props(`${name}-again`, { data: Date.now() }), 2000);
        return undefined;
      },
      choose() {
        const chosen = dash_clientside.callback_context.triggered_id;
        const clicks = dash_clientside.callback_context.triggered[0]?.value;
        if (!chosen || !clicks) return dash_clientside.no_update;
        const name = chosen.form;
        if (chosen.kind === "computer") {
          editorOf(name)?.file.click();
          return dash_clientside.no_update;
        }
        const editor = editorOf(name);
        return { [chosen.kind]: chosen.key, length: chosen.length || null, model: editor?.settings.model, at: Date.now() };
      },
    },
  });

  window.headscopePrompt.get = (name) => editors.get(name);
})();
