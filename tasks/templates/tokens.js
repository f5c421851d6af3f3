// Tokens in colours: the numbers of the chosen layers, the scale, the matrix of layers and tokens, the text.

/** Token influences of a sequence, summed over the chosen layers. */
function influencesOf({ cells, unit }, layers) {
  const chosen = bandsOf(layers).map((k) => cells[k]);
  return cells[0].map((_, position) => unit * chosen.reduce((sum, row) => sum + row[position], 0));
}

const wordsOf = (block, { words }) => words.map((word) => block.vocabulary[word]);
const largestOf = (values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
const peakOf = (values) => values.map(Math.abs).indexOf(largestOf(values));
const spokenScale = (largest, layers) => `Colours from ${figure(-largest)} to ${figure(largest)}, ${nameOf(layers)}`;

/** The scale of the colours, with the numbers that they stand for. */
function scaleMarks(largest) {
  // Strength is the square root of the share, so a quarter of the largest value stands half-way.
  const marks = { "0%": -1, "25%": -0.25, "50%": 0, "75%": 0.25, "100%": 1 };
  const steps = Array.from({ length: 41 }, (_, k) => (k - 20) / 20);
  return [
    make("i", {}, ...steps.map((step) => make("b", { class: side(step), "--a": Math.abs(step) }))),
    ...Object.entries(marks).map(([x, part]) => make("span", { "--x": x }, signed(part * largest))),
  ];
}

/** One button for each choice of layers with its sum and its tokens as a strip; the strips are the matrix. */
function matrixOf(tokens, row, turn) {
  const bands = tokens.cells.map((cells) => tokens.unit * largestOf(cells));
  const nTokens = tokens.cells[0].length;
  const marker = make("div", { class: "marker", "aria-hidden": "true" }, make("i"));
  const lines = choices().map((layers) => {
    const values = influencesOf(tokens, layers);
    const total = layers === null ? row.influence : bandsOf(layers).reduce((sum, k) => sum + tokens.sums[k], 0);
    const isBand = layers !== null && !THIRDS.includes(layers);
    const strip = make("canvas", { width: nTokens, height: 1, "aria-hidden": "true" });
    paint(strip, values, isBand ? Math.max(...bands) : largestOf(values)); // bands share one scale
    const positionAt = ({ offsetX }) => Math.min(nTokens - 1, Math.floor((offsetX / strip.clientWidth) * nTokens));
    const onclick = (event) => {
      if (event.target === strip) turn(layers, positionAt(event));
      else turn(layers, peakOf(values));
    };
    const onmousemove = (event) => {
      if (event.target === strip) strip.title = `${nameOf(layers)}, token ${positionAt(event)}: ${signed(values[positionAt(event)])}`;
    };
    const spoken = { "aria-label": `${fullNameOf(layers)}: ${signed(total)}` };
    const button = make("button", { type: "button", onclick, onmousemove, ...spoken, class: isBand ? "band" : "sum" },
      make("span", {}, nameOf(layers)), make("span", { class: "value" }, signed(total)), strip);
    return { layers, button };
  });
  const element = make("div", { class: "layers", role: "group", "aria-label": "Layers; each strip a layer, each column a token" },
    ...lines.map(({ button }) => button), marker);
  return {
    element,
    press: (layers) => {
      for (const line of lines) line.button.setAttribute("aria-pressed", String(line.layers === layers));
    },
    mark: (position) => marker.style.setProperty("--at", (position + 0.5) / nTokens),
  };
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

const JOINED = /^[\p{M}\u200c\u200d]+$/u; // a token that has no width of its own: marks on the letter before it

/** The tokens as text; pointer and arrow keys go from token to token, up and down from layer to layer. */
function tokenText(tokens, words) {
  const spans = words.map((word, position) => make("span", { tabindex: -1, "data-position": position }, word));
  const kinds = words.map((word) => (JOINED.test(word) ? " joined" : ""));
  const element = make("div", {
    class: "text", dir: "auto", role: "group",
    "aria-label": "Tokens; left and right go from one to the next, up and down from layer to layer",
  }, ...spans);
  let marked = spans[0];
  const mark = (position, focus) => {
    marked.tabIndex = -1; // Tab comes back to the token that was left
    marked = spans[position];
    marked.tabIndex = 0;
    if (focus) marked.focus();
  };
  const colour = (values) => {
    const largest = largestOf(values);
    spans.forEach((span, k) => {
      span.className = side(values[k]) + kinds[k];
      span.style.setProperty("--a", strength(values[k], largest).toFixed(3));
    });
  };
  const listen = (tell, turnLayer) => {
    const told = ({ target }) => target.dataset.position !== undefined && tell(Number(target.dataset.position));
    element.addEventListener("mouseover", told);
    element.addEventListener("focusin", told);
    element.addEventListener("keydown", (event) => {
      const at = Number(event.target.dataset.position);
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (next === undefined && step === undefined) return;
      event.preventDefault();
      if (step) turnLayer(step);
      else spans[next]?.focus();
    });
  };
  return { element, mark, colour, listen };
}
