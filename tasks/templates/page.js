// The page: its data, small helpers, and which part of it the address shows.
// Text enters the document through text nodes only; this file makes every element.

const corpus = JSON.parse(document.getElementById("corpus").textContent);
const blocks = new Map(
  [...document.querySelectorAll("script.query-data")].map((script) => [script.dataset.query, script]),
);

/** The data of one query, parsed when it is first looked at. */
function blockOf(query) {
  const script = blocks.get(query);
  script.data ??= JSON.parse(script.textContent);
  return script.data;
}

/** An element with attributes and children; a string child is text, whatever it contains. */
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "line", "text", "title", "g"].includes(name);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Foreign text in its own direction, so that it cannot reorder what stands beside it. */
const foreign = (text, attributes = {}) => make("bdi", { dir: "auto", ...attributes }, text ?? "–");

const figures = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

/** A number as people read it: 4 significant digits, a true minus sign, – for none. */
function figure(value) {
  if (value === null || value === undefined) return "–";
  const tiny = value !== 0 && Math.abs(value) < 1e-4;
  return (tiny ? value.toExponential(2) : figures.format(value)).replace("-", "−");
}

const signed = (value) => (value > 0 ? "+" : "") + figure(value);
const percent = (share) => (share === null ? "–" : `${figure(Number((100 * share).toPrecision(3)))} %`);
const side = (value) => (value < 0 ? "lowered" : "raised");

/** Colour strength of a value beside the largest one: the square root keeps small values in sight. */
const strength = (value, largest) => (largest > 0 ? Math.sqrt(Math.min(1, Math.abs(value) / largest)) : 0);

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

/** A statement to run over the store, with a button that copies it. */
function statement(sql) {
  const button = make("button", { class: "choice", type: "button" }, "copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(sql);
    button.textContent = "copied";
  });
  return make("p", { class: "copy" }, make("code", { dir: "ltr" }, sql), navigator.clipboard ? button : null);
}

/** What the address asks for: query q, sequence s, layer l, order by. */
function asked() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const query = parameters.get("q");
  return {
    query: blocks.has(query) ? query : null,
    sequence: parameters.get("s"),
    layer: parameters.get("l"),
    by: orders[parameters.get("by")] ? parameters.get("by") : "influence",
  };
}

/** The address of a view; what is null stays out of it. */
function address({ query, sequence = null, layer = null, by = "influence" }) {
  const parts = { q: query, s: sequence, l: layer, by: by === "influence" ? null : by };
  const kept = Object.entries(parts).filter(([, value]) => value !== null);
  return "#" + kept.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
}

/** Change the address without adding a step to the browser's history, and show what it asks for. */
function turnTo(view) {
  history.replaceState(null, "", address(view));
  show();
}

let shownQuery = null;

/** Bring the document to the state that the address names. */
function show() {
  const view = asked();
  const section = document.getElementById("query");
  const inQuery = view.query !== null;
  document.getElementById("queries").hidden = inQuery;
  document.getElementById("run").hidden = inQuery;
  section.hidden = !inQuery;
  if (!inQuery) {
    section.replaceChildren();
    shownQuery = null;
    document.title = `headwater · ${corpus.run.id}`;
    const target = location.hash === "#run" ? document.getElementById("run") : null;
    target?.scrollIntoView();
    return;
  }
  if (view.query !== shownQuery) {
    section.replaceChildren(...queryView(blockOf(view.query)));
    shownQuery = view.query;
    document.title = `${view.query} · headwater`;
    document.getElementById("asked").focus({ preventScroll: true }); // readers aloud begin here
    window.scrollTo(0, 0);
  }
  showRanking(blockOf(view.query), view);
}

window.addEventListener("hashchange", show);
window.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || shownQuery === null) return;
  const view = asked();
  if (view.sequence !== null) turnTo({ ...view, sequence: null, layer: null });
  else location.hash = "";
});
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
