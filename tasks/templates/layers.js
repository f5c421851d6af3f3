// Which layers count: all, a third of the network's depth, or a band, which is one layer unless there are many.

const THIRDS = ["lower", "middle", "upper"].filter((third) => about.bands.some((band) => band.third === third));

/** The key of a choice that this run knows, or null, which means all layers. */
const choiceOf = (key) => (key !== null && bandsOf(key).length > 0 ? key : null);

/** Places of the bands that a choice holds; a band's key is its number, a third's its name. */
function bandsOf(key) {
  const places = about.bands.map((_, k) => k);
  if (key === null) return places;
  return places.filter((k) => about.bands[k].third === key || String(about.bands[k].band) === key);
}

/** Choices in the order in which they are offered; thirds only where they differ from bands. */
const choices = () => [
  null,
  ...(THIRDS.length > 1 && about.bands.length > THIRDS.length ? THIRDS : []),
  ...(about.bands.length > 1 ? about.bands.map((band) => String(band.band)) : []),
];

function nameOf(key) {
  if (key === null) return "all layers";
  if (THIRDS.includes(key)) return `${key} third`;
  const band = about.bands.find((one) => String(one.band) === key);
  if (band.band < 0) return "other modules";
  return band.first_layer === band.last_layer ? `layer ${band.first_layer}`
    : `layers ${band.first_layer}–${band.last_layer}`;
}

/** A name with its layers: "middle third (layers 1–2)". */
function fullNameOf(key) {
  if (!THIRDS.includes(key)) return nameOf(key);
  const held = bandsOf(key).map((k) => about.bands[k]);
  const [first, last] = [held[0].first_layer, held.at(-1).last_layer];
  return `${nameOf(key)} (${first === last ? `layer ${first}` : `layers ${first}–${last}`})`;
}

/** The part of a sequence's influence that the chosen layers hold; null where its layers are not known. */
function partOf(row, key) {
  if (key === null) return row.influence;
  if (row.parts === null) return null;
  return row.unit * bandsOf(key).reduce((sum, k) => sum + row.parts[k], 0);
}

/** A condition on the column `layer` that holds for the chosen layers. */
function conditionOf(key) {
  const held = bandsOf(key).map((k) => about.bands[k]);
  return `layer between ${held[0].first_layer} and ${held.at(-1).last_layer}`;
}

/** The control that chooses layers for the whole view: buttons for all and the thirds, a list for single layers. */
function layerFilter(view) {
  const offered = choices();
  if (offered.length < 2) return null;
  const pick = (layers) => turnTo({ ...view, layers }).then(() => document.getElementById(`layers-${layers}`)?.focus());
  const isSingle = (key) => key !== null && !THIRDS.includes(key);
  const buttons = offered.filter((key) => !isSingle(key)).map((key) => make("button", {
    class: "choice", type: "button", id: `layers-${key}`, title: fullNameOf(key),
    "aria-pressed": String(key === view.layers), onclick: () => pick(key),
  }, nameOf(key)));
  const options = offered.filter(isSingle).map((key) =>
    make("option", { value: key, selected: key === view.layers }, nameOf(key)));
  const single = make("select", {
    class: isSingle(view.layers) ? "choice chosen" : "choice", id: "single-layer", "aria-label": "One layer",
    onchange: (event) => turnTo({ ...view, layers: event.target.value || null })
      .then(() => document.getElementById("single-layer").focus()),
  }, make("option", { value: "" }, "one layer …"), ...options);
  return make("div", { class: "choices", role: "group", "aria-label": "Layers that count" },
    make("span", { class: "minor" }, "Layers"), ...buttons, single);
}
