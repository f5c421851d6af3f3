// The page: small helpers, and which part of it the address shows.
// Text enters the document through text nodes only; this file makes every element.

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

/** What the address asks for: query q, sequence s, layers l, order by, near-duplicates one by one. */
function asked() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const query = parameters.get("q");
  return {
    query: queryIds.includes(query) ? query : null,
    sequence: parameters.get("s"),
    layers: choiceOf(parameters.get("l")),
    by: orders[parameters.get("by")] ? parameters.get("by") : "influence",
    apart: parameters.has("apart"),
  };
}

/** The address of a view; what is usual stays out of it. */
function address({ query, sequence = null, layers = null, by = "influence", apart = false }) {
  const parts = { q: query, s: sequence, l: layers, by: by === "influence" ? null : by, apart: apart ? 1 : null };
  const kept = Object.entries(parts).filter(([, value]) => value !== null);
  return "#" + kept.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
}

/** Change the address without adding a step to the browser's history, and show what it asks for. */
function turnTo(view) {
  history.replaceState(null, "", address(view));
  return show();
}

let shownQuery = null;

/** Bring the document to the state that the address names. */
async function show() {
  const view = asked();
  const section = document.getElementById("query");
  const inQuery = view.query !== null;
  document.getElementById("queries").hidden = inQuery;
  document.getElementById("run").hidden = inQuery;
  section.hidden = !inQuery;
  if (!inQuery) {
    section.replaceChildren();
    shownQuery = null;
    document.title = `headwater · ${about.run.id}`;
    if (location.hash === "#run") document.getElementById("run").scrollIntoView();
    return;
  }
  if (view.query !== shownQuery) await openQuery(view.query, section);
  if (asked().query === view.query && shownQuery === view.query) showRanking(await load(view.query), asked());
}

/** Put a query's view in place of another's. */
async function openQuery(query, section) {
  section.setAttribute("aria-busy", "true");
  const block = await load(query).catch((error) => error);
  if (asked().query !== query) return; // the reader went on meanwhile
  if (block instanceof Error) {
    section.removeAttribute("aria-busy");
    shownQuery = null;
    section.replaceChildren(neighbours(query), make("p", { class: "note", role: "alert" }, block.message));
    return;
  }
  section.replaceChildren(...queryView(block));
  section.removeAttribute("aria-busy");
  shownQuery = query;
  document.title = `${query} · headwater`;
  document.getElementById("asked").focus({ preventScroll: true }); // readers aloud begin here
  window.scrollTo(0, 0);
}
