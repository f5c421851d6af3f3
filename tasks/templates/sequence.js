// One sequence: its tokens on the colours of their influence, for all layers or one.

const MEANING = "Red raised the probability of the completion, teal lowered it. "
  + "Credit stands on the position before the predicted token: "
  + "the colour of a token is what was learnt there about the token that follows it.";
const LEFT_OUT = "The tokens of this sequence are in the store; "
  + "the page carries those at the head of each ranking only.";
const NOT_EXACT = "This sequence was scored from compressed query gradients. "
  + "Token shares exist for exactly scored sequences only: "
  + "raise the parameter method.rescore to have more of them.";

/** Token influences of a (query, sequence) of the page: summed over the layers, or one layer's own. */
function influencesOf({ layers, cells, unit }, layer) {
  const chosen = layer === null ? cells : [cells[layers.indexOf(layer)]];
  return cells[0].map((_, position) => unit * chosen.reduce((sum, row) => sum + row[position], 0));
}

const wordsOf = (sequence) => corpus.sequences[sequence].words.map((word) => corpus.vocabulary[word]);
const largestOf = (values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
const peakOf = (values) => values.map(Math.abs).indexOf(largestOf(values));
const nameOf = (layer) => (layer === null ? "all layers" : layer < 0 ? "other" : `layer ${layer}`);

/** A few lines of text: around the strongest token where tokens are known, else from the beginning. */
function excerpt(block, sequence) {
  const tokens = block.tokens[sequence];
  if (!tokens) return foreign(corpus.sequences[sequence].text);
  const [words, values] = [wordsOf(sequence), influencesOf(tokens, null)];
  const peak = peakOf(values);
  const [first, last] = [Math.max(0, peak - 12), peak + 40];
  return make("bdi", { dir: "auto" },
    first > 0 ? "… " : "", words.slice(first, peak).join(""),
    make("mark", { class: side(values[peak]) }, words[peak]),
    words.slice(peak + 1, last).join(""), last < words.length ? " …" : "");
}

/** The panel below an opened row. */
function sequencePanel(block, row, view) {
  const tokens = block.tokens[row.sequence_id];
  const name = quoted(block.query.query_id);
  const sql = `select * from token_heatmap(${name}, ${row.sequence_id}, run := ${quoted(corpus.run.id)})`;
  return make("div", { class: "panel" }, origin(row),
    ...(tokens ? tokenView(tokens, row, view) : textView(row)), row.exact ? statement(sql) : null);
}

/** Where a sequence comes from and where it stands. */
function origin(row) {
  const about = corpus.sequences[row.sequence_id];
  const [rank, relative] = [figure(row.influence_rank), figure(row.relative_rank)];
  return make("p", { class: "line" },
    fact("sequence", String(row.sequence_id)), fact("document", foreign(about.document)),
    fact("characters", `${figure(about.start)}–${figure(about.end)}`),
    fact("source", foreign(about.source)),
    fact("rank", `${rank} by influence, ${relative} by relative influence`));
}

/** The beginning of a sequence without tokens, and why it has none. */
function textView(row) {
  return [
    make("p", { class: "note" }, row.exact ? LEFT_OUT : NOT_EXACT),
    make("p", { class: "text" }, foreign(corpus.sequences[row.sequence_id].text)),
  ];
}

/** Layers, legend, tokens and the line that reads one of them out. */
function tokenView(tokens, row, view) {
  const known = view.layer !== null && tokens.layers.includes(Number(view.layer));
  const layer = known ? Number(view.layer) : null;
  const values = influencesOf(tokens, layer);
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  return [
    hint(MEANING), layerRows(tokens, row.influence, layer, view), legend(largestOf(values), layer),
    tokenText(wordsOf(row.sequence_id), values, readout), readout,
  ];
}

/** The scale of the colours, with the numbers that they stand for. */
function legend(largest, layer) {
  // Strength is the square root of the share, so a quarter of the largest value stands half-way.
  const marks = { "0%": -1, "25%": -0.25, "50%": 0, "75%": 0.25, "100%": 1 };
  const steps = Array.from({ length: 41 }, (_, k) => (k - 20) / 20);
  const spoken = `Colours from ${figure(-largest)} to ${figure(largest)}, ${nameOf(layer)}`;
  return make("div", { class: "legend", role: "img", "aria-label": spoken },
    make("i", {}, ...steps.map((step) => make("b", { class: side(step), "--a": Math.abs(step) }))),
    ...Object.entries(marks).map(([x, part]) => make("span", { "--x": x }, signed(part * largest))));
}

/** One button per layer with its sum and its tokens as a strip; pressing it colours the text by it. */
function layerRows(tokens, influence, chosen, view) {
  const largest = tokens.unit * Math.max(...tokens.cells.map(largestOf));
  const row = (layer, total, place) => {
    const values = influencesOf(tokens, layer);
    const strip = make("canvas", { width: values.length, height: 1, "aria-hidden": "true" });
    paint(strip, values, layer === null ? largestOf(values) : largest);
    const choose = () => {
      turnTo({ ...view, layer: layer === null ? null : String(layer) });
      document.querySelectorAll(".layers button")[place].focus();
    };
    const pressed = { "aria-pressed": String(layer === chosen) };
    const spoken = { "aria-label": `${nameOf(layer)}: ${signed(total)}` };
    return make("button", { type: "button", onclick: choose, ...pressed, ...spoken },
      make("span", {}, nameOf(layer)), make("span", { class: "value" }, signed(total)), strip);
  };
  const rows = tokens.layers.map((layer, k) => row(layer, tokens.sums[k], k + 1));
  return make("div", { class: "layers", role: "group", "aria-label": "Layers" },
    row(null, influence, 0), ...rows);
}

/** Paint values as one line of pixels in the colours of the page's style. */
function paint(strip, values, largest) {
  const style = getComputedStyle(document.documentElement);
  const context = strip.getContext("2d");
  values.forEach((value, position) => {
    context.fillStyle = `rgb(${style.getPropertyValue(`--${side(value)}`)} / ${strength(value, largest)})`;
    context.fillRect(position, 0, 1, 1);
  });
}

/** The tokens as text; the pointer or the arrow keys move the readout. */
function tokenText(words, values, readout) {
  const [largest, peak] = [largestOf(values), peakOf(values)];
  const spans = words.map((word, position) => make("span", {
    class: side(values[position]), "--a": strength(values[position], largest).toFixed(3),
    tabindex: position === peak ? 0 : -1, "data-position": position,
  }, word));
  const tell = ({ target }) => {
    const { position } = target.dataset;
    if (position !== undefined) readout.replaceChildren(...reading(words, values, Number(position)));
  };
  const step = (event) => {
    const next = spans[Number(event.target.dataset.position) + { ArrowRight: 1, ArrowLeft: -1 }[event.key]];
    if (!next) return;
    event.preventDefault();
    [event.target.tabIndex, next.tabIndex] = [-1, 0]; // Tab comes back to the token that was left
    next.focus();
  };
  readout.append(...reading(words, values, peak));
  const spoken = { role: "group", "aria-label": "Tokens; the arrow keys move from one to the next" };
  const events = { onmouseover: tell, onfocusin: tell, onkeydown: step };
  return make("div", { class: "text", dir: "auto", ...spoken, ...events }, ...spans);
}

/** What the colour of one token says, in words. */
function reading(words, values, position) {
  const [word, next] = [words[position], words[position + 1]].map((text) => text?.replace("\n", ""));
  const value = make("b", {}, signed(values[position]));
  if (next === undefined) return [value, ` at position ${position}: nothing follows `, foreign(word), "."];
  return [value, ` at position ${position}: after `, foreign(word), " the model learnt to predict ",
    foreign(next), "."];
}

window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
