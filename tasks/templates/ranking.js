// The ranking of one query: its orders, its rows, and the row that is open.

const STEP = 25; // rows that are drawn at a time
const unfolded = new Map(); // rows drawn so far, by query and order: a redrawn table is as long as it was

const orders = {
  influence: { label: "influence", rank: "influence_rank", title: "Ranked by influence" },
  relative: { label: "relative influence", rank: "relative_rank", title: "Ranked by relative influence" },
  lowering: { label: "lowered most", rank: "lowering_rank", title: "What lowered the completion most" },
};

/** Columns as a list of rows. */
function records(columns) {
  const names = Object.keys(columns);
  const row = (k) => Object.fromEntries(names.map((name) => [name, columns[name][k]]));
  return (columns[names[0]] ?? []).map((_, k) => row(k));
}

/** Rows from rank 1 on without a gap: beyond it stand rows that only another order brought here. */
function headOf(rows, rank) {
  const sorted = rows.sort((a, b) => a[rank] - b[rank]);
  const gap = sorted.findIndex((row, k) => row[rank] !== k + 1);
  return gap < 0 ? sorted : sorted.slice(0, gap);
}

/** Draw the ranking in the order and with the sequence that the view names. */
function showRanking(block, view) {
  const order = orders[view.by];
  const all = records(block.sequences).filter((row) => view.by !== "lowering" || row.influence < 0);
  const choices = Object.entries(orders).map(([by, { label }]) => {
    const attributes = { class: "choice", type: "button", "aria-pressed": String(by === view.by) };
    return make("button", { ...attributes, onclick: () => turnTo({ ...view, by }) }, label);
  });
  const scrolled = document.querySelector(".text")?.scrollTop ?? 0;
  document.getElementById("ordering").replaceChildren(make("h3", {}, order.title), ...choices);
  document.getElementById("ranking").replaceChildren(...rankingTable(block, view, headOf(all, order.rank)));
  document.querySelector(".text")?.scrollTo(0, scrolled);
}

/** The table as far as it is unfolded, and the button that unfolds more. */
function rankingTable(block, view, rows) {
  if (rows.length === 0) return [make("p", { class: "note" }, "No sequence.")];
  const largest = Math.max(...rows.map((row) => Math.abs(row.influence)));
  const open = rows.findIndex((row) => String(row.sequence_id) === view.sequence);
  const key = `${view.by} ${view.query}`;
  const body = make("tbody");
  const more = make("button", { class: "choice more", type: "button", onclick: () => draw(drawn + STEP) });
  let drawn = 0;
  const draw = (until) => {
    for (const row of rows.slice(drawn, until)) body.append(...rankingRows(block, view, row, largest));
    drawn = Math.min(until, rows.length);
    unfolded.set(key, drawn);
    more.hidden = drawn === rows.length;
    more.textContent = `Show ${Math.min(STEP, rows.length - drawn)} more of ${rows.length}`;
  };
  draw(Math.max(STEP, open + 1, unfolded.get(key) ?? 0));
  const caption = `${orders[view.by].title}. Enter on a rank opens the sequence.`;
  const table = make("table", { class: "ranking" },
    make("caption", { class: "unseen" }, caption), rankingHead(view), body);
  return [table, more];
}

function rankingHead(view) {
  const head = (name, attributes = {}) => make("th", { scope: "col", ...attributes }, name);
  const numberHead = (name) => head(name, { class: "n" });
  const sorter = (by) => {
    const onclick = () => turnTo({ ...view, by });
    const button = make("button", { type: "button", onclick }, orders[by].label);
    return head(button, { class: "n", "aria-sort": view.by === by ? "descending" : null });
  };
  return make("thead", {}, make("tr", {},
    numberHead("#"), sorter("influence"), sorter("relative"), numberHead("per copy"), head("scored"),
    numberHead(`${corpus.run.filter ?? "filter"} rank`), head("strongest layer"),
    head("document"), head("text")));
}

/** The row of a sequence and, where the view names it, its panel. */
function rankingRows(block, view, row, largest) {
  const opened = String(row.sequence_id) === view.sequence;
  const rank = row[orders[view.by].rank];
  const button = make("button", {
    type: "button", id: `rank-${row.sequence_id}`, onkeydown: walk,
    "aria-expanded": String(opened), "aria-label": `Rank ${rank}, sequence ${row.sequence_id}`,
  }, String(rank));
  const part = Math.abs(row.influence) / (largest || 1);
  const amount = { class: `n amount ${side(row.influence)}`, "--part": part };
  const line = make("tr", { class: opened ? "row open" : "row", onclick: () => toggle(button, view, row) },
    make("td", { class: "n rank" }, button),
    numberCell(figure(row.influence), amount),
    numberCell(figure(row.relative_influence)),
    numberCell(figure(row.influence_per_copy)),
    cell(row.exact ? "exactly" : `rank ${block.query.rank ?? "r"}`),
    numberCell(figure(row.filter_rank)),
    make("td", { class: "module" }, ...strongest(row)),
    documentCell(corpus.sequences[row.sequence_id]),
    make("td", { class: "excerpt" }, excerpt(block, row.sequence_id)));
  if (!opened) return [line];
  return [line, make("tr", { class: "detail" }, make("td", { colspan: 9 }, sequencePanel(block, row, view)))];
}

/** The module that holds most of a sequence's influence, by its layer and its name within it. */
function strongest({ strongest_layer: layer, strongest_module: module }) {
  if (module === null) return ["–"];
  return [layerName(layer), make("div", { class: "minor" }, foreign(module.replace(/^.*?\.\d+\./, "")))];
}

function documentCell(about) {
  const source = make("span", { class: "source" }, foreign(about.source));
  const place = `${figure(about.start)}–${figure(about.end)}`;
  const below = make("div", { class: "minor" }, source, place);
  return make("td", { class: "document" }, foreign(about.document), below);
}

/** Open or close a row, keeping it where it is on the screen. */
function toggle(button, view, row) {
  const opened = String(row.sequence_id) === view.sequence;
  const top = button.getBoundingClientRect().top;
  turnTo({ ...view, sequence: opened ? null : String(row.sequence_id), layer: null });
  const redrawn = document.getElementById(button.id);
  redrawn.focus({ preventScroll: true });
  // A panel that closed above would move the row from under the pointer.
  window.scrollBy(0, redrawn.getBoundingClientRect().top - top);
}

/** The arrow keys walk from rank to rank. */
function walk(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...document.querySelectorAll(".rank button")];
  buttons[buttons.indexOf(event.currentTarget) + step]?.focus();
}
