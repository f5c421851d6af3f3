// One row of the ranking: a sequence's numbers, where it comes from, its text, and the panel below it.

const isSparse = (row) => row.sparsity !== null && row.sparsity > about.sparse;

/** The row of a sequence and, where the view names it, its panel. */
function rankingRows(block, view, row, group, largest) {
  const opened = String(row.sequence_id) === view.sequence;
  const isAlike = row !== group.first;
  const button = make("button", {
    type: "button", id: `rank-${row.sequence_id}`, onkeydown: walk,
    "aria-expanded": String(opened), "aria-label": `Rank ${row.place}, sequence ${row.sequence_id}`,
  }, String(row.place));
  const part = Math.abs(row.part) / (largest || 1);
  const amount = { class: `n amount ${side(row.part)}`, "--part": part };
  const kind = ["row", opened ? "open" : "", isAlike ? "alike" : "", isSparse(row) ? "sparse" : ""];
  const line = make("tr", { class: kind.filter(Boolean).join(" "), onclick: () => toggle(button, view, row) },
    make("td", { class: "n rank" }, button),
    numberCell(figure(row.part), amount),
    numberCell(figure(row.relative)),
    numberCell(figure(row.perCopy)),
    make("td", { class: "scored" }, scoredHow(block, row)),
    numberCell(figure(row.filter_rank)),
    make("td", { class: "module" }, ...strongest(row)),
    documentCell(row),
    make("td", { class: "excerpt" }, excerpt(block, row, view.layers), ...remarks(view, row, group, isAlike)));
  if (!opened) return [line];
  return [line, make("tr", { class: "detail" }, make("td", { colspan: 9 }, sequencePanel(block, row, view)))];
}

/** By the whole query gradient, by what compression left of it, or by a method that has none. */
function scoredHow(block, row) {
  if (row.exact) return "exactly";
  return about.shares ? `rank ${block.query.rank ?? "r"}` : "–";
}

/** What stands below the excerpt: that the sequence is sparse, and those that are nearly the same. */
function remarks(view, row, group, isAlike) {
  const found = [];
  if (isSparse(row)) {
    const share = percent(Number(row.largest_token_share.toPrecision(2)));
    found.push(make("div", { class: "minor remark" }, `Sparse: ${share} of it stands on one token.`));
  }
  if (isAlike || group.alike.length === 0) return found;
  const shown = isSpread(view, group);
  const n = group.alike.length;
  const together = group.alike.reduce((sum, one) => sum + one.part, row.part);
  const key = familyKey(view, group);
  const onclick = (event) => {
    event.stopPropagation();
    if (shown) spread.delete(key);
    else spread.add(key);
    table = null;
    show().then(() => document.getElementById(`family-${row.family}`).focus());
  };
  const label = `${shown ? "Hide" : "Show"} ${n} near-duplicate${n === 1 ? "" : "s"}`;
  found.push(make("div", { class: "minor remark" },
    make("button", { type: "button", class: "plain", id: `family-${row.family}`, "aria-expanded": String(shown), onclick },
      label), `, together ${figure(together)}`));
  return found;
}

/** The module that holds most of a sequence's influence, by its layer and its name within it. */
function strongest({ strongest_layer: layer, strongest_module: module }) {
  if (module === null) return ["–"];
  return [layerName(layer), make("div", { class: "minor" }, foreign(module.replace(/^.*?\.\d+\./, "")))];
}

function documentCell(row) {
  const source = make("span", { class: "source" }, foreign(row.source));
  const place = `${figure(row.start_char)}–${figure(row.end_char)}`;
  const below = make("div", { class: "minor" }, source, place);
  return make("td", { class: "document" }, foreign(row.document_id), below);
}

/** A few lines of text: around the strongest token where tokens are known, else from the beginning. */
function excerpt(block, row, layers) {
  const tokens = block.tokens[row.sequence_id];
  if (!tokens) return foreign(row.text);
  const [words, values] = [wordsOf(block, tokens), influencesOf(tokens, layers)];
  const peak = peakOf(values);
  const [first, last] = [Math.max(0, peak - 12), peak + 40];
  return make("bdi", { dir: "auto" },
    first > 0 ? "… " : "", words.slice(first, peak).join(""),
    make("mark", { class: side(values[peak]) }, words[peak]),
    words.slice(peak + 1, last).join(""), last < words.length ? " …" : "");
}

/** Open or close a row, keeping it where it is on the screen. */
async function toggle(button, view, row) {
  const id = String(row.sequence_id);
  const opened = asked().sequence === id;
  const top = button.getBoundingClientRect().top;
  await turnTo({ ...asked(), sequence: opened ? null : id });
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
