// questions.js: predict, then reveal. A question has choices or a number to guess; reveal() computes.

function routed(settings, arrays) {
  const l = engine.layer({"model.hidden_size": HIDDEN, "balance.scope": "global", ...settings});
  try {
    for (const [name, rows] of Object.entries(arrays || {})) { l.set(name, rows); }
    return compute(l, {});
  } finally { l.free(); }
}
const phaseOf = (r, name) => r.predicted_us[engine.lists.phases.indexOf(name)];
const V2 = {"model.num_experts": 64, "cluster.devices": 8, "router.top_k": 6, "router.gate_scale": 2,
  "data.tokens_per_device": 512, "data.skew": 1.2, "data.topic_strength": 0.7};

const QUESTIONS = [
  {
    text: "How many all-to-all exchanges does one Mixture-of-Experts layer need in a training step?",
    choices: ["1", "2", "4", "6"],
    reveal() {
      const r = routed(V2), rows = sum(r.rows_by_level);
      return [2, `<b>4.</b> Forward there are two: the dispatch of ${count(rows)} rows, and a combine that brings as many back. The backward pass walks the same way again: dy goes out to the experts (${count(rows)} rows), dx and the gradients of the weights come back (${count(rows)}).`,
        "One exchange is what papers draw; inference has two."];
    },
  },
  {
    text: "4096 tokens on 8 devices choose 6 of 64 experts each: 24,576 selections. A vector travels once to each device that has experts for it. How many rows are sent?",
    number: [4096, 24576, 16000],
    reveal() {
      const free = sum(routed(V2).rows_by_level);
      const limited = sum(routed({...V2, "router.group_limit": "max", "router.topk_group": 3}).rows_by_level);
      return [free, `<b>${count(free)} rows</b>, ${((100 * free) / 24576).toFixed(0)} % of the selections: experts of one device share a row. With at most 3 devices for a token there are ${count(limited)}.`,
        "Bytes that are counted as T × K × H are those of the other protocol (<i>A vector travels once to each expert</i>)."];
    },
  },
  {
    text: "32 devices in nodes of 8, with 160 GB/s inside a node and 50 GB/s across nodes. Which doubling makes the dispatch faster?",
    choices: ["inside the node", "across nodes", "either one, half as much", "neither"],
    reveal() {
      const of = {...V2, "model.num_experts": 128, "cluster.devices": 32, "cluster.devices_per_node": 8, "cluster.model_hidden_size": MODEL_HIDDEN,
        "exchange.payload": "fp8", "exchange.combine_payload": "bf16", "cluster.intra_gbps": 160, "cluster.inter_gbps": 50, "cluster.exchange_us": 24,
        "data.tokens_per_device": 128};
      const now = routed(of), us = (more) => phaseOf(routed({...of, ...more}), "dispatch").toFixed(1);
      const [own, node, far] = now.rows_by_level;
      return [1, `<b>Across nodes.</b> Now ${phaseOf(now, "dispatch").toFixed(1)} µs; with twice the bandwidth inside the node ${us({"cluster.intra_gbps": 320})} µs, with twice the bandwidth across nodes ${us({"cluster.inter_gbps": 100})} µs.`,
        `The links work at the same time, and the slowest one counts: ${count(far)} rows cross nodes, ${count(node)} stay in a node, and ${count(own)} never leave their device, which no bandwidth is needed for. A figure of GB/s that has them in its bytes is too high.`];
    },
  },
  {
    text: "Decoding: 32 tokens, 8 of 256 experts for each. How many experts have to be read from memory?",
    number: [8, 256, 256],
    reveal() {
      const of = {"model.num_experts": 256, "cluster.devices": 1, "router.top_k": 8, "router.method": "random", "data.tokens_per_device": 32};
      const active = upTo(20).map((seed) => routed({...of, "run.seed": seed}).counts_per_expert.filter((x) => x > 0).length);
      const mean = sum(active) / active.length;
      return [163, `<b>About 163.</b> Twenty draws of even choices had ${most(active.map((x) => -x)) * -1} to ${most(active)}, ${mean.toFixed(1)} in the mean; N (1 - (1 - K/N)^T) = ${(256 * (1 - (1 - 8 / 256) ** 32)).toFixed(1)}.`,
        "Neither K = 8 nor all 256: at small batches most weights are read for one or two tokens."];
    },
  },
  {
    text: "All devices serve exactly as many selections as each other and the device loss is 1. With 6 experts for a token on 8 devices, the communication loss is ...",
    choices: ["also 1", "at least 1", "anything from 1/6 to 1", "0"],
    reveal() {
      const of = {"model.num_experts": 64, "cluster.devices": 8, "router.top_k": 6, "data.tokens_per_device": 64};
      const tokens = Array.from({length: 512}, (_, t) => t), flat = tokens.map(() => Array(64).fill(0));
      const apart = tokens.map((t) => upTo(6).map((k) => ((t + k) % 8) * 8 + (t >> 3) % 8));
      const together = tokens.map((t) => upTo(6).map((k) => (t % 8) * 8 + ((t >> 3) + k) % 8));
      const [a, b] = [apart, together].map((routing) => routed({...of, "router.top_k": 6}, {logits: flat, routing}));
      return [2, `<b>Anything from 1/6 to 1.</b> Every token on 6 devices: device ${a.losses.device.toFixed(3)}, communication ${a.losses.comm.toFixed(3)}, ${count(sum(a.rows_by_level))} rows. Every token's 6 experts on one device: device ${b.losses.device.toFixed(3)}, communication ${b.losses.comm.toFixed(3)}, ${count(sum(b.rows_by_level))} rows.`,
        "f'' counts tokens that a device is sent, f' selections that it serves. Who counts selections in both gets one loss twice."];
    },
  },
];

function questionBody(q, i) {
  if (q.choices) {
    return `<fieldset><legend class="small">Your prediction</legend>${q.choices.map((c, j) =>
      `<label><input type="radio" name="q${i}" value="${j}"> ${c}</label>`).join("")}</fieldset>`;
  }
  const [least, largest, start] = q.number;
  return `<label>Your prediction <input type="range" name="q${i}" min="${least}" max="${largest}" value="${start}"></label> <output>${count(start)}</output>`;
}

function buildQuestions() {
  QUESTIONS.forEach((q, i) => {
    const item = document.createElement("li");
    item.innerHTML = `<p>${q.text}</p>${questionBody(q, i)}<button type="button" ${q.choices ? "disabled" : ""}>Reveal</button><div class="answer" role="status" hidden></div>`;
    const button = item.querySelector("button"), answer = item.querySelector(".answer");
    item.addEventListener("input", (event) => {
      button.disabled = false;
      const output = item.querySelector("output");
      if (output) { output.textContent = count(event.target.value); }
    });
    button.addEventListener("click", () => {
      const [right, found, why] = q.reveal();
      const said = item.querySelector("input:checked, input[type=range]").value;
      const verdict = q.choices ? (Number(said) === right ? "As you predicted." : `You said: ${q.choices[said]}`)
        : `You said ${count(said)}: ${Math.abs(said - right) <= 0.05 * right ? "within 5 %." : `${(said / right).toFixed(2)} times as many.`}`;
      answer.innerHTML = `<p>${verdict}</p><p>${found}</p><p>${why}</p>`;
      answer.hidden = false;
    });
    $("questions").append(item);
  });
}
