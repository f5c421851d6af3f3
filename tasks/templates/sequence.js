// One sequence: where it stands, its layer × token matrix, its tokens in the colours of the chosen layers.

const MEANING = "Red raised the probability of the completion, teal lowered it. "
  + "Numbers are nats; colours deepen with their square root. Credit stands on the position before the predicted token: "
  + "the colour of a token is what was learnt there about the token that follows it.";
const LEFT_OUT = "The tokens of this sequence are in the store; "
  + "the page carries those at the head of each ranking only.";
const NO_SHARES = "The method of this run compares no gradients of one model, so its score has no shares of tokens.";
const NOT_EXACT = "This sequence was scored from compressed query gradients. "
  + "Token shares exist for exactly scored sequences only: "
  + "raise the parameter method.rescore to have more of them.";

/** The panel below an opened row. */
function sequencePanel(block, row, view) {
  const tokens = block.tokens[row.sequence_id];
  const name = quoted(block.query.query_id);
  const sql = `select * from token_heatmap(${name}, ${row.sequence_id}, run := ${quoted(about.run.id)})`;
  return make("div", { class: "panel" }, origin(row), sparseNote(row),
    ...(tokens ? tokenView(block, tokens, row, view) : textView(row)), row.exact ? statement(sql) : null);
}

/** Where a sequence comes from and where it stands. */
function origin(row) {
  const [rank, relative] = [figure(row.influence_rank), figure(row.relative_rank)];
  return make("p", { class: "line" },
    fact("sequence", String(row.sequence_id)), fact("document", foreign(row.document_id)),
    fact("characters", `${figure(row.start_char)}–${figure(row.end_char)}`),
    fact("source", foreign(row.source)),
    fact("rank", row.relative_influence === null ? rank : `${rank} by influence, ${relative} by relative influence`));
}

/** Why a sequence is grey. */
function sparseNote(row) {
  if (!isSparse(row)) return null;
  return make("p", { class: "note" }, "Its influence stands almost wholly on one token: ‖a‖₂ / ‖a‖₁ over its tokens is ",
    make("b", {}, figure(row.sparsity)), `, above ${figure(about.sparse)}. Such sequences are greyed as spurious, as in Grosse et al. 2023.`);
}

/** The beginning of a sequence without tokens, and why it has none. */
function textView(row) {
  return [
    make("p", { class: "note" }, row.exact ? LEFT_OUT : about.shares ? NOT_EXACT : NO_SHARES),
    make("p", { class: "text" }, foreign(row.text)),
  ];
}

/** Matrix, legend, the tokens between the text around them, and the line that reads one of them out. */
function tokenView(block, tokens, row, view) {
  const words = wordsOf(block, tokens);
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const scale = make("div", { class: "legend", role: "img" });
  const state = { layers: view.layers, position: 0 };
  const text = tokenText(tokens, words);
  const matrix = matrixOf(tokens, row, (layers, position) => turn(layers, position, true));
  /** Show other layers, another token, or both. */
  const turn = (layers, position, focus = false) => {
    const recolour = layers !== state.layers || !scale.hasChildNodes();
    Object.assign(state, { layers, position });
    const values = influencesOf(tokens, layers);
    if (recolour) {
      text.colour(values);
      scale.setAttribute("aria-label", spokenScale(largestOf(values), layers));
      scale.replaceChildren(...scaleMarks(largestOf(values)));
      matrix.press(layers);
    }
    text.mark(position, focus);
    matrix.mark(position);
    readout.replaceChildren(...reading(words, values, position, layers));
  };
  text.listen((position) => turn(state.layers, position), (step) => {
    const offered = choices();
    const next = offered[offered.indexOf(state.layers) + step];
    if (next !== undefined) turn(next, state.position, true);
  });
  turn(view.layers, peakOf(influencesOf(tokens, view.layers)));
  return [hint(MEANING), matrix.element, scale, around(tokens.before, tokens.begins_earlier, "before"),
    text.element, around(tokens.after, tokens.goes_on, "after"), readout];
}

/** What the document says before or after the sequence. */
function around(text, goesOn, place) {
  if (text === null || text.trim() === "") return null;
  const cut = goesOn ? "… " : "";
  const heading = make("span", { class: "minor" }, place === "before" ? "The document before" : "The document after");
  return make("div", { class: "around" }, heading,
    foreign(place === "before" ? cut + text : `${text}${goesOn ? " …" : ""}`, { class: "neighbour" }));
}

/** What the colour of one token says, in words. */
function reading(words, values, position, layers) {
  const [word, next] = [words[position], words[position + 1]].map((text) => text && shownAlone(text));
  const value = make("b", {}, signed(values[position]));
  const where = layers === null ? ` at position ${position}: ` : ` in ${nameOf(layers)} at position ${position}: `;
  if (next === undefined) return [value, where, "nothing follows ", foreign(word), "."];
  return [value, where, "after ", foreign(word), " the model learnt to predict ", foreign(next), "."];
}

/** A token by itself: without its line end, and a mark that combines with what stands before it on a circle. */
const shownAlone = (text) => text.replace("\n", "").replace(/^\p{M}/u, (mark) => `◌${mark}`);
