"use strict";
// engine.js: libmoesim (src/library/moesim.h) in WebAssembly: settings and arrays in, results out.

const TYPES = {1: Uint8Array, 2: Int32Array, 3: BigInt64Array, 4: Float32Array, 5: Float64Array};
const ERROR_MAX = 1024, MAX_DIMS = 3, ARRAY_BYTES = 8 + 8 * MAX_DIMS + 8;

class Engine {
  static async open(bytes) {
    const engine = new Engine();
    const refuse = () => 8; // nothing can be read or written here; EBADF
    const {instance} = await WebAssembly.instantiate(bytes, {
      wasi_snapshot_preview1: {
        fd_close: refuse,
        fd_seek: refuse,
        fd_write: (file, vectors, count, written) => engine.print(vectors, count, written),
        proc_exit: (code) => { throw new Error(`libmoesim ended with ${code}: ${engine.printed}`); },
      },
    });
    engine.c = instance.exports;
    engine.printed = "";
    engine.c._initialize();
    engine.error = engine.c.malloc(ERROR_MAX);
    engine.array = engine.c.malloc(ARRAY_BYTES);
    engine.lists = {};
    for (const what of ["losses", "scopes", "levels", "phases", "results"]) {
      engine.lists[what] = engine.list(what);
    }
    return engine;
  }

  view() { return new DataView(this.c.memory.buffer); }

  // What the library says before it ends, for the message of proc_exit.
  print(vectors, count, written) {
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const at = this.view().getUint32(vectors + 8 * i, true);
      const length = this.view().getUint32(vectors + 8 * i + 4, true);
      this.printed += new TextDecoder().decode(new Uint8Array(this.c.memory.buffer, at, length));
      sum += length;
    }
    this.view().setUint32(written, sum, true);
    return 0;
  }

  read(at) {
    const bytes = new Uint8Array(this.c.memory.buffer, at);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  // Calls use with the address of a text.
  withText(text, use) {
    const bytes = new TextEncoder().encode(text + "\0"), at = this.c.malloc(bytes.length);
    new Uint8Array(this.c.memory.buffer, at, bytes.length).set(bytes);
    try { return use(at); } finally { this.c.free(at); }
  }

  list(what) {
    const words = [];
    return this.withText(what, (text) => {
      for (let at; (at = this.c.moesim_list(text, words.length)) !== 0;) { words.push(this.read(at)); }
      return words;
    });
  }

  check(failed) { if (failed) { throw new Error(this.read(this.error)); } }

  // A layer with settings {"section.key": value}.
  layer(settings = {}) { return new Layer(this, settings); }
}

class Layer {
  constructor(engine, settings) {
    this.engine = engine;
    this.at = engine.withText(lines(settings), (text) => engine.c.moesim_layer_new(text, engine.error));
    engine.check(this.at === 0);
  }

  free() { this.engine.c.moesim_layer_free(this.at); this.at = 0; }

  change(settings) {
    const e = this.engine;
    e.check(e.withText(lines(settings), (text) => e.c.moesim_layer_change(this.at, text, e.error)));
  }

  // An array of float64 (logits, bias), or of int32 (routing), in rows.
  set(name, rows) {
    const e = this.engine, width = rows[0].length, type = name === "routing" ? 2 : 5;
    const data = TYPES[type].from(rows.flat()), at = e.c.malloc(data.byteLength);
    new TYPES[type](e.c.memory.buffer, at, data.length).set(data);
    const view = e.view();
    view.setInt32(e.array, type, true);
    view.setInt32(e.array + 4, 2, true);
    view.setBigInt64(e.array + 8, BigInt(rows.length), true);
    view.setBigInt64(e.array + 16, BigInt(width), true);
    view.setUint32(e.array + 8 + 8 * MAX_DIMS, at, true);
    const failed = e.withText(name, (text) => e.c.moesim_layer_set(this.at, text, e.array, e.error));
    e.c.free(at);
    e.check(failed);
  }

  route(settings) {
    if (settings) { this.change(settings); }
    this.engine.check(this.engine.c.moesim_layer_route(this.at, this.engine.error));
    return this;
  }

  // A result as a typed array of numbers, a copy; null where this routing has none.
  get(name) {
    const e = this.engine;
    if (e.withText(name, (text) => e.c.moesim_layer_get(this.at, text, e.array, e.error))) { return null; }
    const view = e.view(), type = view.getInt32(e.array, true), dims = view.getInt32(e.array + 4, true);
    let count = 1;
    for (let i = 0; i < dims; i++) { count *= Number(view.getBigInt64(e.array + 8 + 8 * i, true)); }
    const at = view.getUint32(e.array + 8 + 8 * MAX_DIMS, true);
    const data = new TYPES[type](e.c.memory.buffer, at, count);
    return type === 3 ? Float64Array.from(data, Number) : data.slice();
  }
}

function lines(settings) {
  return Object.entries(settings).map(([key, value]) => `${key} = ${value}\n`).join("");
}
