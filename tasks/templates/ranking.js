// The ranking of one query: its orders, near-duplicates under the first of their like, and the row that is open.

const STEP = 25; // rows that are drawn at a time, when the end of the table comes near
const unfolded = new Map(); // rows drawn so far, by order: a redrawn table is as long as it was
const spread = new Set(); // families whose every member is shown, by query
let table = null; // what is drawn: { key, turn }

const orders = {
  influence: { label: "influence", rank: "influence_rank", title: "Ranked by influence" },
  relative: { label: "relative influence", rank: "relative_rank", title: "Ranked by relative influence" },
  lowering: { label: "lowered most", rank: "lowering_rank", title: "What lowered the completion most" },
};

/** Rows from rank 1 on without a gap: beyond it stand rows that only another order brought here. */
function headOf(rows, rank) {
  const sorted = rows.toSorted((a, b) => a[rank] - b[rank]);
  const gap = sorted.findIndex((row, k) => row[rank] !== k + 1);
  return gap < 0 ? sorted : sorted.slice(0, gap);
}

/** The rows of a view in its order, each with its place and the numbers that the chosen layers leave of it. */
function ranked(block, { by, layers }) {
  const known = block.sequences.flatMap((row) => {
    const part = partOf(row, layers);
    if (part === null) return [];
    const left = layers === null ? 1 : row.influence ? part / row.influence : 0;
    const of = (value) => (value === null ? null : value * left);
    return [{ ...row, part, relative: of(row.relative_influence), perCopy: of(row.influence_per_copy) }];
  });
  const wanted = by === "lowering" ? known.filter((row) => row.part < 0) : known;
  const measure = { influence: (row) => -row.part, relative: (row) => -row.relative, lowering: (row) => row.part }[by];
  const rows = layers === null ? headOf(wanted, orders[by].rank) : wanted.sort((a, b) => measure(a) - measure(b));
  return rows.map((row, k) => ({ ...row, place: k + 1 }));
}

/** Rows as groups: the first of a family, and the others that are nearly the same. */
function grouped(rows, apart) {
  const groups = new Map();
  for (const row of rows) {
    const key = apart || row.family === null ? `${row.sequence_id}` : `family ${row.family}`;
    if (groups.has(key)) groups.get(key).alike.push(row);
    else groups.set(key, { first: row, alike: [] });
  }
  return [...groups.values()];
}

/** Draw the ranking in the order, by the layers and with the sequence that the view names. */
function showRanking(block, view) {
  const key = JSON.stringify([view.query, view.layers, view.by, view.apart]);
  if (table?.key === key && table.turn(view)) return;
  const rows = ranked(block, view);
  document.getElementById("ordering").replaceChildren(...toolbar(block, view, rows));
  table = rankingTable(block, view, rows, key);
}

/** What is ranked, by what, and the controls that change it. */
function toolbar(block, view, rows) {
  const choose = (by) => turnTo({ ...view, by }).then(() => document.getElementById(`by-${by}`).focus());
  const buttons = Object.entries(orders).map(([by, { label }]) => make("button", {
    class: "choice", type: "button", id: `by-${by}`, "aria-pressed": String(by === view.by), onclick: () => choose(by),
  }, label));
  const nAlike = rows.length - grouped(rows, false).length;
  const group = nAlike === 0 ? null : make("button", {
    class: "choice", type: "button", id: "group", "aria-pressed": String(!view.apart),
    title: "One family: half or more of the distinct runs of five tokens are the same, from one to the next",
    onclick: () => turnTo({ ...view, apart: !view.apart }).then(() => document.getElementById("group").focus()),
  }, `group ${figure(nAlike)} near-duplicates`);
  return [
    make("div", { class: "ordering" }, make("h2", {}, orders[view.by].title),
      make("div", { class: "choices", role: "group", "aria-label": "Order of the sequences" }, ...buttons)),
    make("div", { class: "ordering second" }, layerFilter(view), group),
    view.layers === null ? null : make("p", { class: "note", role: "status" },
      `What counts: ${fullNameOf(view.layers)}. The ${figure(rows.length)} sequences of this page are ranked by the part `
      + `of their ${view.by === "relative" ? "relative influence" : "influence"} in it, and tokens take its colours. `
      + "Others of the run may belong among them: the statement below asks for all."),
    statement(rankingStatement(block, view)),
  ].filter((part) => part !== null);
}

/** What asks the store for the head of this ranking, of all its sequences. */
function rankingStatement(block, { by, layers }) {
  const [name, run] = [quoted(block.query.query_id), quoted(about.run.id)];
  const own = `run_id = ${run} and query_id = ${name}`;
  const method = `method = ${quoted(about.run.method)}`;
  if (layers === null && by !== "lowering") {
    return `select * from top_influences(${name}, run := ${run}${by === "relative" ? ", by := 'relative'" : ""})`;
  }
  if (layers === null) {
    return `select sequence_id, influence from influences where ${own} and ${method} `
      + "and influence < 0 order by influence limit 10";
  }
  const part = `select sequence_id, sum(influence) as influence from layer_influences where ${own} `
    + `and ${conditionOf(layers)} group by sequence_id`;
  if (by === "lowering") return `${part} having sum(influence) < 0 order by influence limit 10`;
  if (by === "influence") return `${part} order by influence desc limit 10`;
  return `select p.*, p.influence * i.relative_influence / i.influence as relative_influence from (${part}) p `
    + `join influences i using (sequence_id) where ${own} and ${method} `
    + "order by relative_influence desc limit 10";
}

/** Draw the table as far as it is unfolded; more of it comes as the reader nears its end. */
function rankingTable(block, view, rows, key) {
  const place = document.getElementById("ranking");
  if (rows.length === 0) {
    place.replaceChildren(make("p", { class: "note" }, "No sequence."));
    return { key, turn: () => true };
  }
  const groups = grouped(rows, view.apart);
  const largest = Math.max(...rows.map((row) => Math.abs(row.part)));
  const lines = new Map(); // sequence → its elements, the panel's among them
  const body = make("tbody");
  const more = make("button", { class: "choice more", type: "button", onclick: () => draw(drawn + STEP) });
  let [drawn, open] = [0, view.sequence];
  const rowsOf = (row, group, now) => {
    const made = rankingRows(block, now, row, group, largest);
    lines.set(String(row.sequence_id), { made, row, group });
    return made;
  };
  const draw = (until) => {
    for (const group of groups.slice(drawn, until)) {
      const shown = isSpread(view, group) ? group.alike : [];
      for (const row of [group.first, ...shown]) body.append(...rowsOf(row, group, { ...view, sequence: open }));
    }
    drawn = Math.min(until, groups.length);
    unfolded.set(key, drawn);
    more.hidden = drawn === groups.length;
    more.textContent = `Show ${Math.min(STEP, groups.length - drawn)} more of ${figure(groups.length)}`;
  };
  const redraw = (id, now) => {
    const { made, row, group } = lines.get(id);
    made[0].before(...rowsOf(row, group, now));
    for (const element of made) element.remove();
  };
  const holder = groups.findIndex(({ first, alike }) =>
    [first, ...alike].some((row) => String(row.sequence_id) === open));
  if (holder >= 0 && String(groups[holder].first.sequence_id) !== open) spread.add(familyKey(view, groups[holder]));
  draw(Math.max(STEP, holder + 1, unfolded.get(key) ?? 0));
  const caption = `${orders[view.by].title}, ${nameOf(view.layers)}. Enter on a rank opens the sequence.`;
  place.replaceChildren(make("table", { class: "ranking" },
    make("caption", { class: "unseen" }, caption), rankingHead(view), body), more);
  new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting) && !more.hidden) draw(drawn + STEP);
  }, { rootMargin: "900px" }).observe(more);
  /** Open another row without drawing the rest again; false where it is not drawn. */
  const turn = (now) => {
    if (now.sequence !== null && !lines.has(now.sequence)) return false;
    const changed = [open, now.sequence].filter((id) => id !== null && lines.has(id));
    open = now.sequence;
    for (const id of new Set(changed)) redraw(id, now);
    return true;
  };
  return { key, turn };
}

const familyKey = (view, { first }) => `${view.query} ${first.family}`;
const isSpread = (view, group) => group.alike.length > 0 && spread.has(familyKey(view, group));

function rankingHead(view) {
  const head = (name, attributes = {}) => make("th", { scope: "col", ...attributes }, name);
  const numberHead = (name) => head(name, { class: "n" });
  const sorter = (by) => {
    const onclick = () => turnTo({ ...view, by });
    const button = make("button", { type: "button", onclick }, orders[by].label);
    const counted = view.layers === null || by !== view.by ? null : make("div", {}, nameOf(view.layers));
    const unit = by === "influence" ? make("div", { class: "minor" }, "nats") : null;
    return head(make("div", {}, button, unit, counted), { class: "n", "aria-sort": view.by === by ? "descending" : null });
  };
  return make("thead", {}, make("tr", {},
    numberHead("#"), sorter("influence"), sorter("relative"), head(make("div", {}, "per copy", make("div", { class: "minor" }, "nats")), { class: "n" }), head("scored"),
    numberHead(`${about.run.filter ?? "filter"} rank`), head("strongest layer"),
    head("document"), head("text")));
}
