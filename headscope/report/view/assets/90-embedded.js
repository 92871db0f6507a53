/* A run inside a file: queries, keys and log-normalisers, from which any part of a pattern is computed when it is asked for. */
(() => {
  "use strict";
  const { parts } = Headscope;
  /** Heads that stay unpacked. */
  const HEADS = 6;
  /** Milliseconds of work between which the page lives. */
  const SLICE = 12;
  /** From this level on a tile is most of the pattern, so that the whole of it is computed once. */
  const SHARED = 3;

  /* -- arrays as text -------------------------------------------------------------------------------------------- */

  function bytesOf(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
    return bytes;
  }

  async function inflated(bytes) {
    if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old to open the file: it has no DecompressionStream. Use Chrome or Edge 80, Firefox 113, Safari 16.4, or a later one.");
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** Put the first bytes of all numbers, then the second ones, back into numbers. */
  function joined(planes, width) {
    if (width === 1) return planes;
    const count = planes.length / width;
    const bytes = new Uint8Array(planes.length);
    for (let b = 0; b < width; b++) for (let i = 0, at = b * count; i < count; i++) bytes[i * width + b] = planes[at + i];
    return bytes;
  }

  const scratch = new DataView(new ArrayBuffer(4));
  const READERS = {
    f4: (bytes) => new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4),
    i4: (bytes) => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4),
    u1: (bytes) => bytes,
    /* The upper half of a float32. */
    bf2: (bytes) => {
      const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
      return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
    },
    f2: (bytes) => Float32Array.from(new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2), (half) => {
      const [exponent, fraction] = [(half >> 10) & 31, half & 1023];
      let size;
      if (exponent === 0) size = fraction * 2 ** -24;
      else if (exponent === 31) size = fraction ? NaN : Infinity;
      else {
        scratch.setUint32(0, ((exponent + 112) << 23) | (fraction << 13));
        size = scratch.getFloat32(0);
      }
      return half & 0x8000 ? -size : size;
    }),
  };
  const WIDTH = { f4: 4, i4: 4, u1: 1, bf2: 2, f2: 2 };

  class Arrays {
    constructor(blocks, text) {
      Object.assign(this, { blocks, text });
    }
    async get(name) {
      const { type, packed } = this.blocks[name];
      const text = this.text(name);
      if (typeof text !== "string") throw new Error(`The file is incomplete: its part ${name} is missing. Save it again.`);
      let bytes = bytesOf(text);
      if (packed) bytes = joined(await inflated(bytes), WIDTH[type]);
      return READERS[type](bytes);
    }
  }

  /* -- work in slices of a frame --------------------------------------------------------------------------------- */

  const channel = new MessageChannel();
  const turns = [];
  channel.port1.onmessage = () => turns.shift()();
  /** Go on after whatever else waits; timers would wait four milliseconds more, and `scheduler.yield` lets nobody else in. */
  const turn = () => new Promise((go) => {
    turns.push(go);
    channel.port2.postMessage(0);
  });

  /** Let the page live every few milliseconds, and end the work that nobody waits for any more. */
  class Clock {
    constructor(signal) {
      this.signal = signal;
      this.began = performance.now();
    }
    get due() {
      return performance.now() - this.began > SLICE;
    }
    async rest() {
      await turn();
      if (this.signal && this.signal.aborted) throw new DOMException("No longer needed.", "AbortError");
      this.began = performance.now();
    }
  }

  /* -- one head -------------------------------------------------------------------------------------------------- */

  class Head {
    /** @param {Object} facts - scalars; @param {Object} arrays - q, k, lse and what else shapes the pattern */
    constructor(length, facts, arrays) {
      Object.assign(this, { length, facts, ...arrays });
      this.dim = this.q.length / length;
    }
    /** First key that a query may see, and the one behind the last. */
    ends(query) {
      if (this.from) return [this.from[query], this.to[query]];
      return [0, this.facts.causal ? query + 1 : this.length];
    }
    sees(query, key) {
      const [first, end] = this.ends(query);
      if (key < first || key >= end) return false;
      return !this.bits || ((this.bits[query * Math.ceil(this.length / 8) + (key >> 3)] >> (7 - (key & 7))) & 1) === 1;
    }
    biasAt(query, key) {
      if (!this.bias) return 0;
      const { bias } = this.facts;
      return this.bias[bias === "distance" ? key - query + this.length - 1 : bias === "key" ? key : query * this.length + key];
    }
    /** Products of a query with keys first to end − 1, four keys at a time. */
    products(query, first, end, out, at) {
      const { q, k, dim } = this;
      const own = query * dim;
      let key = first;
      for (; key + 3 < end; key += 4, at += 4) {
        let [a, b, c, d] = [0, 0, 0, 0];
        let [i, j, l, m] = [key * dim, (key + 1) * dim, (key + 2) * dim, (key + 3) * dim];
        for (let o = own; o < own + dim; o++) {
          const x = q[o];
          a += x * k[i++];
          b += x * k[j++];
          c += x * k[l++];
          d += x * k[m++];
        }
        out[at] = a;
        out[at + 1] = b;
        out[at + 2] = c;
        out[at + 3] = d;
      }
      for (; key < end; key++) {
        let sum = 0;
        for (let o = own, i = key * dim; o < own + dim; ) sum += q[o++] * k[i++];
        out[at++] = sum;
      }
    }
    /** Attention of a query to keys c0 to c1 − 1, into out[0 …]; returns the part of it that may not be zero. */
    weights(query, c0, c1, out) {
      out.fill(0, 0, c1 - c0);
      const lse = this.lse[query];
      let [first, end] = this.ends(query);
      [first, end] = [Math.max(first, c0), Math.min(end, c1)];
      if (first >= end || (!this.pattern && !(lse > -Infinity))) return [0, 0];
      if (this.pattern) {
        for (let key = first; key < end; key++) out[key - c0] = this.pattern[query * this.length + key];
        return [first - c0, end - c0];
      }
      this.products(query, first, end, out, first - c0);
      const { scale, softcap } = this.facts;
      for (let key = first, i = first - c0; key < end; key++, i++) {
        let logit = out[i] * scale;
        if (softcap !== null) logit = softcap * Math.tanh(logit / softcap);
        if (this.bias) logit += this.biasAt(query, key);
        out[i] = Math.exp(logit - lse);
      }
      if (this.bits) for (let key = first; key < end; key++) if (!this.sees(query, key)) out[key - c0] = 0;
      for (const { groups, table, count } of this.factors) {
        for (let key = first, row = query * count; key < end; key++) out[key - c0] *= table[row + groups[key]];
      }
      return [first - c0, end - c0];
    }

    async row(query) {
      const out = new Float64Array(this.length);
      this.weights(query, 0, this.length, out);
      return Float32Array.from(out);
    }
    async column(key, clock) {
      const out = new Float32Array(this.length);
      const one = new Float64Array(1);
      for (let query = 0; query < this.length; query++) {
        this.weights(query, key, key + 1, one);
        out[query] = one[0];
        if ((query & 255) === 255 && clock.due) await clock.rest();
      }
      return out;
    }
    /** A rectangle of queries r0 to r1 − 1 and keys c0 to c1 − 1. */
    async part(r0, r1, c0, c1, clock) {
      const data = new Float32Array((r1 - r0) * (c1 - c0));
      const line = new Float64Array(c1 - c0);
      for (let query = r0; query < r1; query++) {
        const [first, end] = this.weights(query, c0, c1, line);
        if (first < end) data.set(line.subarray(first, end), (query - r0) * (c1 - c0) + first);
        if (clock.due) await clock.rest();
      }
      return { rows: r1 - r0, cols: c1 - c0, data };
    }
    /** The same in blocks of `side` tokens: the sum and the largest of each. */
    async pooled(r0, r1, c0, c1, side, clock) {
      const [rows, cols] = [Math.ceil((r1 - r0) / side), Math.ceil((c1 - c0) / side)];
      const [sum, max] = [new Float64Array(rows * cols), new Float32Array(rows * cols)];
      const line = new Float64Array(c1 - c0);
      for (let query = r0; query < r1; query++) {
        const [first, end] = this.weights(query, c0, c1, line);
        const base = Math.floor((query - r0) / side) * cols;
        for (let i = first; i < end; ) {
          const block = Math.floor(i / side);
          const stop = Math.min((block + 1) * side, end);
          let [total, most] = [0, 0];
          for (; i < stop; i++) {
            total += line[i];
            if (line[i] > most) most = line[i];
          }
          sum[base + block] += total;
          if (most > max[base + block]) max[base + block] = most;
        }
        if (clock.due) await clock.rest();
      }
      return { rows, cols, sum, max };
    }
    neuron(query, key) {
      const { dim } = this;
      const { scale, softcap, rotary } = this.facts;
      const q = Array.from(this.q.subarray(query * dim, (query + 1) * dim));
      const k = Array.from(this.k.subarray(key * dim, (key + 1) * dim));
      const product = q.map((x, d) => x * k[d] * scale);
      const raw = product.reduce((sum, x) => sum + x, 0);
      const visible = this.sees(query, key);
      const bias = visible ? this.biasAt(query, key) : 0;
      const logit = visible ? (softcap === null ? raw : softcap * Math.tanh(raw / softcap)) + bias : -Infinity;
      const lse = this.lse[query];
      const weight = visible && lse > -Infinity ? Math.exp(logit - lse) : 0;
      let [edited, note] = [null, visible ? null : "This query cannot see this key."];
      if (this.touched && this.touched[query]) {
        const one = new Float64Array(1);
        this.weights(query, key, key + 1, one);
        edited = one[0];
        note = `An edit changes this row: the weight shown is before the edit; after it, it is ${Number(edited.toPrecision(4))}.`;
      }
      return { q, k, product, scale, raw, softcap, bias, logit, lse, weight, edited, rotary, visible, note };
    }
  }

  /* -- the source ------------------------------------------------------------------------------------------------ */

  class Embedded {
    constructor(data) {
      this.data = data;
      this.arrays = new Arrays(data.blocks, data.text);
      this.heads = new parts.Cache(HEADS);
      this.keys = new parts.Cache(HEADS);
      this.levels = new parts.Cache(12);
    }
    async meta() {
      return this.data.meta;
    }
    async stat(name) {
      const block = this.data.stats[name];
      if (block === undefined) throw new Error(`This file has no statistic ‘${name}’.`);
      return this.arrays.get(block);
    }
    async thumbs(layer) {
      const block = this.data.thumbs[layer];
      if (block === undefined) throw new Error(`Layer ${layer} has no queries and keys to look at.`);
      return this.arrays.get(block);
    }
    /** A head with its arrays; those used last stay. */
    head(layer, head) {
      const name = `${layer}.${head}`;
      const facts = this.data.heads[name];
      if (!facts) {
        const call = this.data.again.replace("{head}", `(${layer}, ${head})`);
        return Promise.reject(Object.assign(new Error(`The queries and keys of layer ${layer}, head ${head} are not in this file. To look at it: ${call}`), { final: true }));
      }
      return this.kept(this.heads, name, () => this.open(facts));
    }
    kept(cache, name, make) {
      const found = cache.get(name);
      if (found) return found;
      const promise = make();
      cache.set(name, promise);
      promise.catch(() => cache.peek(name) === promise && cache.delete(name));
      return promise;
    }
    async open(facts) {
      const get = (name) => (name === null || name === undefined ? null : this.arrays.get(name));
      /* Numbers of 64 bits need no conversion in the products, which is where the time goes. */
      const wide = async (name) => Float64Array.from(await this.arrays.get(name));
      const [q, k, lse, from, to, bits, bias, touched, pattern] = await Promise.all([
        wide(facts.q), this.kept(this.keys, facts.k, () => wide(facts.k)), get(facts.lse), get(facts.mask && facts.mask.from), get(facts.mask && facts.mask.to),
        get(facts.mask && facts.mask.bits), get(facts.bias && facts.bias.block), get(facts.touched), get(facts.pattern),
      ]);
      const factors = await Promise.all((facts.factors || []).map(async (one) => ({ count: one.count, groups: await get(one.groups), table: await get(one.table) })));
      const { scale, softcap, causal, rotary } = facts;
      return new Head(this.data.meta.length, { scale, softcap, causal, rotary, bias: facts.bias && facts.bias.kind }, { q, k, lse, from, to, bits, bias, touched, pattern, factors });
    }

    async tile({ layer, head, level, row, col, reduce }, signal) {
      const { length, tile, levels } = this.data.meta;
      const { overview } = this.data.heads[`${layer}.${head}`] || {};
      if (overview !== undefined && level === levels - 1 && reduce === "max" && row === 0 && col === 0) {
        const side = Math.ceil(length / 2 ** level);
        return { rows: side, cols: side, data: await this.arrays.get(overview) };
      }
      const found = await this.head(layer, head);
      const clock = new Clock(signal);
      const span = tile * 2 ** level;
      const [r0, c0] = [row * span, col * span];
      const [r1, c1] = [Math.min(r0 + span, length), Math.min(c0 + span, length)];
      if (!(r0 >= 0 && c0 >= 0 && r0 < r1 && c0 < c1)) throw new Error(`Tile (${row}, ${col}) of level ${level} is out of range.`);
      if (level === 0) return found.part(r0, r1, c0, c1, clock);
      const side = 2 ** level;
      if (level < SHARED) {
        /* Mean and largest come from one pass: who looks at one may turn to the other. */
        const name = `${layer}.${head} ${level} ${row} ${col}`;
        const known = this.levels.get(name) || this.levels.set(name, await found.pooled(r0, r1, c0, c1, side, clock));
        return reduced(known, reduce, side, r1 - r0, c1 - c0);
      }
      const whole = await this.level(layer, head, level, found, clock);
      return cut(whole, reduce, side, length, row * tile, col * tile, tile);
    }
    /** The whole pattern in blocks, for levels whose tiles are most of it: finer blocks once, coarser ones from them. */
    async level(layer, head, level, found, clock) {
      const name = `${layer}.${head} ${level}`;
      const known = this.levels.get(name);
      if (known) return known;
      if (level === SHARED) return this.levels.set(name, await found.pooled(0, found.length, 0, found.length, 2 ** level, clock));
      return this.levels.set(name, halved(await this.level(layer, head, level - 1, found, clock)));
    }
    async row(layer, head, query) {
      return (await this.head(layer, head)).row(query);
    }
    async column(layer, head, key, signal) {
      return (await this.head(layer, head)).column(key, new Clock(signal));
    }
    async neuron(layer, head, query, key) {
      return (await this.head(layer, head)).neuron(query, key);
    }
  }

  function reduced({ rows, cols, sum, max }, reduce, side, height, width) {
    if (reduce === "max") return { rows, cols, data: max };
    const data = new Float32Array(rows * cols);
    for (let r = 0, i = 0; r < rows; r++) {
      const tall = Math.min(side, height - r * side);
      for (let c = 0; c < cols; c++, i++) data[i] = sum[i] / (tall * Math.min(side, width - c * side));
    }
    return { rows, cols, data };
  }

  function halved({ rows, cols, sum, max }) {
    const [tall, wide] = [Math.ceil(rows / 2), Math.ceil(cols / 2)];
    const made = { rows: tall, cols: wide, sum: new Float64Array(tall * wide), max: new Float32Array(tall * wide) };
    for (let r = 0, i = 0; r < rows; r++) {
      for (let c = 0; c < cols; c++, i++) {
        const at = (r >> 1) * wide + (c >> 1);
        made.sum[at] += sum[i];
        if (max[i] > made.max[at]) made.max[at] = max[i];
      }
    }
    return made;
  }

  function cut(whole, reduce, side, length, r0, c0, tile) {
    const all = reduced(whole, reduce, side, length, length);
    const [rows, cols] = [Math.min(tile, all.rows - r0), Math.min(tile, all.cols - c0)];
    if (rows === all.rows && cols === all.cols) return { rows, cols, data: all.data.slice() };
    const data = new Float32Array(rows * cols);
    for (let r = 0; r < rows; r++) data.set(all.data.subarray((r0 + r) * all.cols + c0, (r0 + r) * all.cols + c0 + cols), r * cols);
    return { rows, cols, data };
  }

  /**
   * A source over what `headscope.report.view.embed` wrote.
   * @param {Object} data - its JSON, with `text(name)`, which gives a block as base64
   */
  Headscope.embedded = (data) => new Embedded(data);

  /** Show the run that a page holds: JSON in #run, blocks in #block-NAME, the viewer in #viewer. */
  Headscope.openFile = () => {
    const data = JSON.parse(document.getElementById("run").textContent);
    data.text = (name) => {
      const held = document.getElementById(`block-${name}`);
      return held && held.textContent;
    };
    const own = location.protocol !== "about:";
    const asked = own && location.hash.length > 1 ? Headscope.fromQuery(location.hash.slice(1)) : data.state;
    const onState = (state) => own && history.replaceState(null, "", `#${Headscope.toQuery(state)}`);
    Headscope.viewer = Headscope.mount(document.getElementById("viewer"), Headscope.embedded(data), { state: asked, theme: data.theme, onState });
  };
})();
