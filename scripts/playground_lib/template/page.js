// page.js: the controls, one routing for each change, and everything that shows it.

const CLUSTERS = @clusters@; // {title: {key of [cluster]: value}}
const POWERS = [1, 2, 4, 8, 16, 32, 64];
const HIDDEN = 16, MODEL_HIDDEN = 7168, MODEL_INTERMEDIATE = 2048, MOST_EXPERTS = 256;
const $ = (id) => document.getElementById(id);
const groups = [
  ["The layer", [
    {id: "devices", label: "Devices D", values: POWERS, value: 8},
    {id: "experts", label: "Experts N", values: () => POWERS.map((x) => x * state.devices).filter((n) => n <= MOST_EXPERTS), value: 64},
    {id: "k", label: "Experts of a token K", values: () => upTo(Math.min(16, state.experts)), value: 6},
    {id: "tokens", label: "Tokens T", values: [64, 128, 256, 512, 1024, 2048, 4096], value: 4096},
    {id: "skew", label: "Skew of the topics", values: steps(0, 2.5, 0.1), value: 1.2},
    {id: "alike", label: "Tokens of a topic alike", values: steps(0, 0.95, 0.05), value: 0.7},
    {id: "seed", label: "Seed", values: upTo(20), value: 1},
  ]],
  ["Router", [
    {id: "score", label: "Score", options: {softmax: "softmax", sigmoid: "sigmoid", sqrtsoftplus: "sqrt softplus", softmax_topk: "softmax over the chosen"}, value: "softmax"},
    {id: "limit", label: "Device limit", options: {none: "none", max: "best expert (DeepSeek-V2)", top2_sum: "best two (DeepSeek-V3)"}, value: "none"},
    {id: "m", label: "Devices of a token, at most M", values: () => mValues(), value: 3, when: () => state.limit !== "none"},
  ]],
  ["Capacity", [
    {id: "policy", label: "Limit of", options: {none: "none: nobody is dropped", device: "each device", expert: "each expert", sequence: "each expert, by sequence"}, value: "none"},
    {id: "factor", label: "Capacity factor", values: [1, 1.1, 1.25, 1.5, 2, 3, 4], value: 1.25, when: () => state.policy !== "none"},
  ]],
  ["Exchange", [
    {id: "mode", label: "A vector travels", options: {token: "once to each device", selection: "once to each expert"}, value: "token"},
    {id: "node", label: "Devices of a node", values: () => POWERS.filter((x) => x <= state.devices), value: 8},
    {id: "cluster", label: "Cluster (times)", options: Object.fromEntries(Object.keys(CLUSTERS).map((x) => [x, x])), value: Object.keys(CLUSTERS)[0]},
    {id: "payload", label: "Numbers out", options: {fp8: "fp8", bf16: "bf16", fp32: "fp32"}, value: "fp8"},
  ]],
];
const controls = groups.flatMap(([, list]) => list);
const state = Object.fromEntries(controls.map((c) => [c.id, c.value]));
let engine, layer, result;

function steps(from, to, by) {
  return Array.from({length: Math.round((to - from) / by) + 1}, (_, i) => Math.round((from + i * by) * 100) / 100);
}
function upTo(n) { return Array.from({length: n}, (_, i) => i + 1); }
// Groups are devices: K experts have to fit into M of them.
function mValues() {
  const size = state.experts / state.devices;
  return upTo(state.devices).filter((m) => m * size >= state.k);
}
const count = (n) => Math.round(n).toLocaleString("en");
const nearest = (values, x) => values.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));

// --- controls ---

function valuesOf(c) { return typeof c.values === "function" ? c.values() : c.values; }

function buildControls() {
  for (const [title, list] of groups) {
    const set = document.createElement("fieldset");
    set.innerHTML = `<legend>${title}</legend>`;
    for (const c of list) {
      const row = document.createElement("div");
      row.className = "control";
      row.innerHTML = `<label for="${c.id}">${c.label}</label>` + (c.options
        ? `<select id="${c.id}">${Object.entries(c.options).map(([v, t]) => `<option value="${v}">${t}</option>`).join("")}</select>`
        : `<output id="${c.id}-value" for="${c.id}"></output><input type="range" id="${c.id}" min="0" step="1">`);
      set.append(row);
      row.addEventListener("input", (event) => { event.stopPropagation(); take(c); });
    }
    $("controls").append(set);
  }
  $("controls").addEventListener("submit", (event) => event.preventDefault());
}

function take(c) {
  state[c.id] = c.options ? $(c.id).value : valuesOf(c)[Number($(c.id).value)];
  update();
}

// What is possible follows from the controls before it: a value that is gone becomes its neighbour.
function settle() {
  if (state.limit === "top2_sum" && state.experts / state.devices < 2) { state.limit = "max"; }
  for (const c of controls) {
    const row = $(c.id).parentElement;
    row.hidden = Boolean(c.when) && !c.when();
    row.style.display = row.hidden ? "none" : "";
    if (c.options) { $(c.id).value = state[c.id]; continue; }
    const values = valuesOf(c);
    state[c.id] = nearest(values, state[c.id]);
    $(c.id).max = values.length - 1;
    $(c.id).value = values.indexOf(state[c.id]);
    $(c.id).disabled = values.length === 1;
    $(c.id).setAttribute("aria-valuetext", String(state[c.id]));
    $(`${c.id}-value`).textContent = state[c.id];
  }
}

// The settings of moesim. Those of the exchange that say nothing about rows are for the times.
function settingsOf(s) {
  const of = {
    "run.seed": s.seed,
    "model.hidden_size": HIDDEN,
    "model.num_experts": s.experts,
    "router.top_k": s.k,
    "router.score_func": s.score,
    "router.norm_topk_prob": s.score === "sigmoid" ? "yes" : "no",
    "router.group_limit": s.limit,
    "router.topk_group": s.limit === "none" ? 0 : s.m,
    "router.gate_scale": 2,
    "balance.scope": "global",
    "capacity.policy": s.policy,
    "capacity.capacity_factor": s.factor,
    "exchange.mode": s.mode,
    "exchange.payload": s.payload,
    "exchange.combine_payload": s.payload === "fp32" ? "fp32" : "bf16",
    "cluster.devices": s.devices,
    "data.tokens_per_device": s.tokens / s.devices,
    "data.sequence_length": Math.min(64, s.tokens),
    "data.skew": s.skew,
    "data.topic_strength": s.alike,
    "cluster.model_hidden_size": MODEL_HIDDEN,
    "cluster.model_intermediate_size": MODEL_INTERMEDIATE,
  };
  for (const [key, value] of Object.entries(CLUSTERS[s.cluster])) { of[`cluster.${key}`] = value; }
  of["cluster.devices_per_node"] = s.node;
  return of;
}

// --- a change ---

const WANTED = ["topk_idx", "kept", "device_of_token", "counts_per_expert", "kept_per_expert", "counts_per_device",
  "kept_per_device", "distinct_tokens_per_device", "tokens_by_reach", "capacity", "loss_raw", "loss_ideal",
  "comm_matrix", "rows_by_level", "selections_by_level", "predicted_us"];

function compute(into, settings) {
  into.route(settings);
  const found = Object.fromEntries(WANTED.map((name) => [name, into.get(name)]));
  found.losses = Object.fromEntries(engine.lists.losses.map((name, i) => [name, found.loss_raw[i]]));
  found.ideal = Object.fromEntries(engine.lists.losses.map((name, i) => [name, found.loss_ideal[i]]));
  return found;
}

function update() {
  settle();
  const start = performance.now();
  try {
    result = {...compute(layer, settingsOf(state)), ...state};
    $("error").hidden = true;
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
    return;
  }
  show();
  const took = performance.now() - start;
  $("took").textContent = took.toFixed(1);
  document.documentElement.dataset.took = took;
  document.documentElement.dataset.changes = Number(document.documentElement.dataset.changes || 0) + 1;
}

const sum = (list) => list.reduce((a, b) => a + b, 0);
const most = (list) => list.reduce((a, b) => Math.max(a, b), -Infinity);
const maxOverMean = (list) => (sum(list) > 0 ? (most(list) * list.length) / sum(list) : 1);

function vectorBytes(payload, width) {
  return payload === "fp32" ? 4 * width : payload === "bf16" ? 2 * width : width + 4 * Math.ceil(width / 128);
}
function bytesText(bytes) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= size) { return `${(bytes / size).toPrecision(4)} ${unit}`; }
  }
  return `${bytes} B`;
}

function show() {
  const r = result, load = r.kept_per_device, busiest = load.indexOf(most(load));
  const rows = sum(r.rows_by_level), selections = sum(r.counts_per_expert), kept = sum(r.kept_per_expert);
  const reach = sum(r.tokens_by_reach.map((n, x) => n * x)) / r.tokens;
  $("sentence").textContent = (r.devices > 1
    ? `Device ${busiest} serves ${maxOverMean(load).toFixed(2)} times the mean. A token's ${r.k} experts are on ${reach.toFixed(2)} devices, so ${count(kept)} selections travel in ${count(rows)} rows.`
    : "One device: nothing travels.") +
    (kept < selections ? ` ${(100 * (1 - kept / selections)).toFixed(1)} % of the selections are dropped.` : "");
  showLosses(r);
  showVolume(r, rows);
  showTime(r);
  showExperts(r);
  $("token").max = r.tokens - 1;
  if (Number($("token").value) > r.tokens - 1) { $("token").value = 0; }
  showToken();
  startFlow();
  $("file").textContent = fileOf(settingsOf(state));
}

function showLosses(r) {
  const title = {expert: "expert", device: "device", comm: "communication", z: "z (logits)", importance: "importance", load: "load"};
  $("losses").innerHTML = "<thead><tr><th>loss</th><th>now</th><th>at balance</th></tr></thead><tbody>" +
    Object.keys(title).map((name) => `<tr><th>${title[name]}</th><td>${r.losses[name].toFixed(4)}</td><td>${Number.isNaN(r.ideal[name]) ? "none" : r.ideal[name].toFixed(4)}</td></tr>`).join("") + "</tbody>";
}

function showVolume(r, rows) {
  const out = vectorBytes(r.payload, MODEL_HIDDEN), names = ["stay on their device", "inside a node", "across nodes"];
  const line = (name, n, pairs) => `<tr><th>${name}</th><td>${count(n)}</td><td>${count(pairs)}</td><td>${bytesText(n * out)}</td></tr>`;
  $("volume").innerHTML = "<thead><tr><th>rows that</th><th>rows</th><th>selections</th><th>bytes</th></tr></thead><tbody>" +
    names.map((name, i) => line(name, r.rows_by_level[i], r.selections_by_level[i])).join("") +
    line("all", rows, sum(r.selections_by_level)) + `</tbody>`;
  $("volume").insertAdjacentHTML("beforeend", `<caption class="small" style="caption-side:bottom;text-align:left">Vectors of ${MODEL_HIDDEN} numbers in ${r.payload}: ${count(out)} bytes a row.</caption>`);
}

function showTime(r) {
  const parts = ["gate", "dispatch", "expert", "combine", "allreduce"].map((name) => [name, r.predicted_us[engine.lists.phases.indexOf(name)]]);
  const longest = most(parts.map(([, us]) => us)) || 1, whole = r.predicted_us[engine.lists.phases.indexOf("step")];
  $("time").innerHTML = `<div class="bars">${parts.map(([name, us]) => `<span>${name}</span><i style="width:${(100 * us) / longest}%"></i><b>${us.toFixed(1)} µs</b>`).join("")}<span>all</span><span></span><b>${whole.toFixed(1)} µs</b></div>` +
    `<p class="small">On ${r.cluster}, experts of ${MODEL_HIDDEN} × ${MODEL_INTERMEDIATE}. Gate and products wait for the slowest device.</p>`;
}

function fileOf(settings) {
  const sections = {};
  for (const [full, value] of Object.entries({...settings, "run.gemm": "reference"})) {
    const [section, key] = full.split(".");
    (sections[section] = sections[section] || []).push(`${key} = ${value}\n`);
  }
  return Object.entries(sections).map(([name, list]) => `[${name}]\n${list.join("")}`).join("\n");
}

// --- one token ---

function showToken() {
  const r = result, t = Number($("token").value), per = r.experts / r.devices, home = r.device_of_token[t];
  const to = new Map();
  let dropped = 0, chosen = 0;
  for (let i = t * r.k; i < (t + 1) * r.k; i++) {
    const expert = r.topk_idx[i], device = Math.floor(expert / per);
    if (expert < 0) { continue; }
    chosen++;
    if (!r.kept[i]) { dropped++; continue; }
    to.set(device, [...(to.get(device) || []), expert]);
  }
  const ways = [...to].sort((a, b) => a[0] - b[0]).map(([d, list]) => `device ${d}${d === home ? " (its own)" : ""}: expert${list.length > 1 ? "s" : ""} ${list.join(", ")}`);
  const rows = r.mode === "token" ? to.size : sum([...to.values()].map((list) => list.length));
  $("token-number").textContent = t;
  $("token").setAttribute("aria-valuetext", `token ${t}`);
  $("token-way").textContent = `It lives on device ${home} and chose ${chosen} expert${chosen === 1 ? "" : "s"}` +
    `${dropped ? `, ${dropped} of them dropped` : ""}: ${ways.join("; ") || "nobody serves it"}. ${chosen} selections, ${rows} row${rows === 1 ? "" : "s"}.`;
}

// --- pictures ---

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

// A canvas in the pixels of the screen; returns its context and its size in CSS pixels.
function surface(canvas, height) {
  const width = canvas.clientWidth || canvas.width, ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  return [g, width, height];
}

function showExperts(r) {
  const [g, width, height] = surface($("expert-load"), 120), n = r.experts, top = most(r.counts_per_expert) || 1;
  const mean = sum(r.counts_per_expert) / n, bar = width / n;
  for (let e = 0; e < n; e++) {
    g.fillStyle = colour("--own");
    const all = ((height - 6) * r.counts_per_expert[e]) / top, kept = ((height - 6) * r.kept_per_expert[e]) / top;
    g.fillRect(e * bar, height - all, Math.max(bar - 1, 0.6), all);
    g.fillStyle = colour(Math.floor(e / (n / r.devices)) % 2 ? "--c2" : "--c0");
    g.fillRect(e * bar, height - kept, Math.max(bar - 1, 0.6), kept);
  }
  g.strokeStyle = colour("--ink");
  g.setLineDash([5, 4]);
  g.beginPath();
  g.moveTo(0, height - ((height - 6) * mean) / top);
  g.lineTo(width, height - ((height - 6) * mean) / top);
  g.stroke();
  g.setLineDash([]);
  $("experts-text").textContent = `The busiest has ${maxOverMean(r.counts_per_expert).toFixed(2)} times the mean (dashed); ${r.counts_per_expert.filter((x) => x === 0).length} of ${n} have no token. Colours change with the device${sum(r.kept_per_expert) < sum(r.counts_per_expert) ? "; grey is dropped" : ""}.`;
}

const LEVELS = [["--own", "stays on its device"], ["--node", "inside a node"], ["--cluster", "across nodes"]];
let travellers = [], flowStart = 0, frame = 0, paused = false;

// Rows of tokens that are spread evenly over the batch; at most about 240 of them.
function sampleRows(r) {
  const rows = [], per = r.experts / r.devices, wanted = Math.ceil(240 / Math.max(1, sum(r.rows_by_level) / r.tokens));
  const stride = Math.max(1, Math.floor(r.tokens / wanted));
  for (let t = Math.floor(stride / 2); t < r.tokens; t += stride) {
    const seen = new Set();
    for (let i = t * r.k; i < (t + 1) * r.k; i++) {
      const device = Math.floor(r.topk_idx[i] / per);
      if (!r.kept[i] || (r.mode === "token" && seen.has(device))) { continue; }
      seen.add(device);
      const from = r.device_of_token[t];
      rows.push({from, to: device, level: from === device ? 0 : Math.floor(from / r.node) === Math.floor(device / r.node) ? 1 : 2, phase: (rows.length * 0.618034) % 1});
    }
  }
  return rows;
}

function startFlow() {
  travellers = sampleRows(result);
  $("legend").innerHTML = `${count(travellers.length)} of ${count(sum(result.rows_by_level))} rows.` +
    LEVELS.map(([name, text]) => `<span class="key" style="background:var(${name})"></span>${text}`).join("") +
    "<br>Above: where tokens live. Below: the selections that each device serves, with the mean dashed.";
  if (!frame) { frame = requestAnimationFrame(drawFlow); }
}

function pause() {
  paused = !paused;
  $("pause").textContent = paused ? "Move" : "Pause";
  if (!frame) { frame = requestAnimationFrame(drawFlow); }
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches || matchMedia("print").matches;

function drawFlow(now) {
  const r = result, [g, width, height] = surface($("flow"), Math.min(380, Math.max(260, innerWidth * 0.42)));
  const slot = width / r.devices, load = r.kept_per_device, top = most(load) || 1, mean = sum(load) / r.devices;
  const above = 34, below = height * 0.62, room = height - below - 22, x = (d) => (d + 0.5) * slot;
  g.font = "12px system-ui, sans-serif";
  g.textAlign = "center";
  for (let d = 0; d < r.devices; d++) {
    g.fillStyle = colour("--line");
    g.fillRect(x(d) - slot * 0.38, above - 20, slot * 0.76, 22);
    g.fillStyle = colour("--c0");
    g.fillRect(x(d) - slot * 0.38, below, slot * 0.76, (room * load[d]) / top);
    g.fillStyle = colour("--ink");
    if (slot > 22 || d % 4 === 0) { g.fillText(String(d), x(d), above - 5); }
    if (slot > 40) { g.fillText(count(load[d]), x(d), height - 6); }
    if (d % r.node === 0 && d > 0) {
      g.fillStyle = colour("--soft");
      g.fillRect(d * slot - 0.5, 4, 1, height - 8);
    }
  }
  g.strokeStyle = colour("--ink");
  g.setLineDash([5, 4]);
  g.beginPath();
  g.moveTo(0, below + (room * mean) / top);
  g.lineTo(width, below + (room * mean) / top);
  g.stroke();
  g.setLineDash([]);
  drawRows(g, now, x, above + 4, below, slot);
  frame = still() || paused ? 0 : requestAnimationFrame(drawFlow);
}

function drawRows(g, now, x, above, below, slot) {
  const motionless = still(), span = below - above;
  for (const [level, [name]] of LEVELS.entries()) {
    g.strokeStyle = g.fillStyle = colour(name);
    for (const row of travellers) {
      if (row.level !== level) { continue; }
      const shift = (row.phase - 0.5) * slot * 0.6, a = x(row.from) + shift, b = x(row.to) + shift;
      const at = (s) => [a + (b - a) * s * s * (3 - 2 * s), above + span * s];
      if (motionless) {
        g.globalAlpha = 0.35;
        g.beginPath();
        g.moveTo(...at(0));
        g.bezierCurveTo(a, above + span * 0.5, b, above + span * 0.5, ...at(1));
        g.stroke();
        g.globalAlpha = 1;
        continue;
      }
      const [px, py] = at(((now - flowStart) / 3200 + row.phase) % 1);
      g.beginPath();
      g.arc(px, py, 2.6, 0, 7);
      g.fill();
    }
  }
}

// --- start ---

async function start() {
  const packed = Uint8Array.from(atob(WASM), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  engine = await Engine.open(await new Response(stream).arrayBuffer());
  buildControls();
  settle();
  layer = engine.layer(settingsOf(state));
  update();
  buildQuestions();
  $("token").addEventListener("input", showToken);
  $("pause").addEventListener("click", pause);
  const redraw = () => { showExperts(result); startFlow(); };
  addEventListener("resize", redraw);
  addEventListener("beforeprint", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // For tests: the figures of any settings.
  window.moesim = {engine, state, update, settingsOf, compute, result: () => result};
  document.documentElement.dataset.ready = "yes";
}
start().catch((error) => {
  $("error").textContent = `The page cannot compute: ${error.message}`;
  $("error").hidden = false;
});
