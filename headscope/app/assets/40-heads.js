// The choice of heads, as one value.
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.headscope_heads = {
  choose(kind, text, set, file, top) {
    const data = { kind, text: text || "", file: kind === "set" ? set : kind === "top" ? file : null,
      top: Number.isInteger(top) ? top : null };
    return [data, kind !== "typed", kind !== "set", kind !== "top"];
  },
};
