// Regions of a text, as pure functions. A region is [name, start, end], in UTF-16 units as browsers count.
(() => {
  "use strict";

  /** Where two texts differ, as {at, removed, inserted}, when at most `most` characters of their ends may be the same. */
  function between(before, after, most) {
    const shorter = Math.min(before.length, after.length);
    let tail = 0;
    while (tail < Math.min(most, shorter) && before.charCodeAt(before.length - 1 - tail) === after.charCodeAt(after.length - 1 - tail)) tail++;
    let head = 0;
    while (head < shorter - tail && before.charCodeAt(head) === after.charCodeAt(head)) head++;
    return { at: head, removed: before.length - head - tail, inserted: after.length - head - tail };
  }

  /** Where two texts differ. `caret` is where typing ended, which tells apart what the texts do not: a in aa, say. */
  function difference(before, after, caret) {
    const least = between(before, after, Infinity);
    if (caret === undefined) return least;
    const told = between(before, after, after.length - caret);
    return told.removed + told.inserted > least.removed + least.inserted ? least : told;
  }

  /** Regions after an edit: those behind it move, those around it grow or shrink, those inside it leave. */
  function shifted(regions, { at, removed, inserted }) {
    const end = at + removed;
    const by = inserted - removed;
    const kept = [];
    for (const [name, from, to] of regions) {
      if (to <= at) kept.push([name, from, to]);
      else if (from >= end) kept.push([name, from + by, to + by]);
      else if (from < at && to > end) kept.push([name, from, to + by]);
      else if (from < at) kept.push([name, from, at]);
      else if (to > end) kept.push([name, at + inserted, to + by]);
    }
    return kept;
  }

  /** Add a span; spans of one name that touch become one. */
  function marked(regions, name, from, to) {
    const out = [];
    let place = -1; // the first one that it joins: the order of names is that of their colours
    for (const region of regions) {
      if (region[0] === name && region[1] <= to && region[2] >= from) {
        from = Math.min(from, region[1]);
        to = Math.max(to, region[2]);
        if (place < 0) place = out.push(null) - 1;
      } else out.push(region);
    }
    if (place < 0) place = out.push(null) - 1;
    out[place] = [name, from, to];
    return out;
  }

  /** Give a region another name; if that is taken the two become one. */
  function renamed(regions, old, name) {
    let out = [];
    for (const [own, from, to] of regions) {
      if (own === old || own === name) out = marked(out, name, from, to);
      else out.push([own, from, to]);
    }
    return out;
  }

  /** Without white space at the edges, unless there is nothing else. */
  function trimmed(text, from, to) {
    const piece = text.slice(from, to);
    if (!piece.trim()) return [from, to];
    return [from + piece.length - piece.trimStart().length, to - piece.length + piece.trimEnd().length];
  }

  const HIGH = /[\ud800-\udbff]/;

  /** Regions with every offset put through `convert`, which sees them in ascending order. */
  function converted(regions, convert) {
    const offsets = [...new Set(regions.flatMap((region) => [region[1], region[2]]))].sort((a, b) => a - b);
    const map = new Map(convert(offsets));
    return regions.map(([name, from, to]) => [name, map.get(from), map.get(to)]);
  }

  /** UTF-16 units to characters, as Python counts them. */
  function toPoints(text, regions) {
    if (!HIGH.test(text)) return regions;
    return converted(regions, (offsets) => {
      let unit = 0;
      let point = 0;
      return offsets.map((offset) => {
        for (; unit < offset; point++) unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
        return [offset, point];
      });
    });
  }

  /** Characters to UTF-16 units. */
  function toUnits(text, regions) {
    if (!HIGH.test(text)) return regions;
    return converted(regions, (offsets) => {
      let unit = 0;
      let point = 0;
      return offsets.map((offset) => {
        for (; point < offset && unit < text.length; point++) unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
        return [offset, unit];
      });
    });
  }

  /** A name that templates, addresses and Python can have. */
  function tidyName(name) {
    let tidy = name.trim().replace(/[^\p{L}\p{N}_]+/gu, "_").replace(/^_+|_+$/g, "").slice(0, 32);
    if (/^\p{N}/u.test(tidy)) tidy = `r${tidy}`;
    return tidy;
  }

  /** Places of `needle` in `text`, case ignored where lower case keeps the length. */
  function places(text, needle, most = 500) {
    if (!needle) return [];
    const fold = text.toLowerCase().length === text.length;
    const [where, what] = fold ? [text.toLowerCase(), needle.toLowerCase()] : [text, needle];
    const found = [];
    for (let at = where.indexOf(what); at >= 0 && found.length < most; at = where.indexOf(what, at + what.length)) {
      found.push([at, at + what.length]);
    }
    return found;
  }

  /** Cut `text` where a mark or a match begins or ends: [from, to, name or null, matched]. */
  function segments(text, regions, matches) {
    const cuts = new Set([0, text.length]);
    for (const [, from, to] of regions) cuts.add(from).add(to);
    for (const [from, to] of matches) cuts.add(from).add(to);
    const sorted = [...cuts].sort((a, b) => a - b);
    const out = [];
    for (let i = 0; i + 1 < sorted.length; i++) {
      const [from, to] = [sorted[i], sorted[i + 1]];
      // The shortest lies on top: an answer inside its needle stays visible.
      const around = regions.filter((region) => region[1] <= from && region[2] >= to);
      around.sort((a, b) => a[2] - a[1] - (b[2] - b[1]));
      const matched = matches.some(([start, end]) => start <= from && end >= to);
      out.push([from, to, around.length ? around[0][0] : null, matched]);
    }
    return out;
  }

  /** Names in the order of their first place in the text. */
  function namesOf(regions) {
    return [...new Set([...regions].sort((a, b) => a[1] - b[1] || b[2] - a[2]).map((region) => region[0]))];
  }

  window.headscopePrompt = {
    pure: { difference, shifted, marked, renamed, trimmed, toPoints, toUnits, tidyName, places, segments, namesOf },
  };
})();
