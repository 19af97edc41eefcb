/* start.js: controls, the list of sections, colours, printing; then the charts, one after another
 * so that the page stays alive meanwhile. When all are drawn, <html> has data-drawn. */

/* A slider's place in words. */
function shownState(name) {
  if (name === "decision") return RUN.rebalance[state.decision].step;
  if (name === "matrix") return RUN.matrix.steps[state.matrix];
  return state[name] < 0 ? "all" : state[name];
}

function showState() {
  for (const input of document.querySelectorAll("input[data-state]"))
    input.value = state[input.dataset.state];
  for (const select of document.querySelectorAll("select[data-state]"))
    select.value = state[select.dataset.state];
  for (const output of document.querySelectorAll("output[data-show]"))
    output.value = shownState(output.dataset.show);
  for (const button of document.querySelectorAll("button[data-state]"))
    button.setAttribute("aria-pressed", state[button.dataset.state] === button.dataset.value);
}

function choose(name, value) {
  if (state[name] === value) return;
  state[name] = value;
  showState();
  redraw(name);
}

function chooseTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  for (const button of document.querySelectorAll("[data-theme-choice]"))
    button.setAttribute("aria-pressed", button.dataset.themeChoice === theme);
  redraw();
}

function listSections() {
  const nav = document.querySelector("nav");
  for (const section of document.querySelectorAll("main > section")) {
    const link = document.createElement("a");
    link.href = `#${section.id}`;
    link.textContent = section.querySelector("h2").textContent;
    nav.append(link);
  }
}

const PAPER_WIDTH = 695; // CSS pixels between the margins of an A4 page

/* On paper everything is light and as wide as the page. */
function toPaper() {
  document.documentElement.dataset.screen = document.documentElement.dataset.theme ?? "";
  document.documentElement.dataset.theme = "light";
  for (const id of [...charts.keys()]) draw(id, PAPER_WIDTH);
}

function fromPaper() {
  const before = document.documentElement.dataset.screen;
  delete document.documentElement.dataset.screen;
  chooseTheme(before || "auto");
}

/* What a list shows first is what its chart shows first. */
function listenToLists() {
  for (const select of document.querySelectorAll("select[data-state]")) {
    state[select.dataset.state] = select.value;
    select.addEventListener("change", () => choose(select.dataset.state, select.value));
  }
}

function start() {
  listenToLists();
  for (const input of document.querySelectorAll("input[data-state]"))
    input.addEventListener("input", () => choose(input.dataset.state, Number(input.value)));
  for (const button of document.querySelectorAll("button[data-state]"))
    button.addEventListener("click", () => choose(button.dataset.state, button.dataset.value));
  for (const button of document.querySelectorAll("[data-theme-choice]"))
    button.addEventListener("click", () => chooseTheme(button.dataset.themeChoice));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", toPaper);
  addEventListener("afterprint", fromPaper);
  if (RUNS.every((run) => run.layers <= 1)) state.layer = 0;
  showState();
  listSections();
  const waiting = [...charts.keys()];
  (function next() {
    const id = waiting.shift();
    if (id === undefined) {
      document.documentElement.dataset.drawn = "yes";
      return;
    }
    if (charts.has(id)) draw(id);
    setTimeout(next);
  })();
}

start();
