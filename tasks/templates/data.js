// Where the page's data comes from: blocks of gzipped JSON in the page, one per query, unpacked when first asked for.
// What shows them knows `about`, `queryIds` and `load` alone, so that a server could answer in their place.

const about = JSON.parse(document.getElementById("about").textContent);
const blocks = new Map(
  [...document.querySelectorAll("script.query-data")].map((script) => [script.dataset.query, script]),
);
const queryIds = [...blocks.keys()];
const loading = new Map();

/** Promise of all that is known of a query; its sequences are rows. */
function load(query) {
  if (!loading.has(query)) loading.set(query, unpacked(blocks.get(query).textContent).then(withRows));
  return loading.get(query);
}

async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** The columns of the sequences as rows. */
function withRows(block) {
  const names = Object.keys(block.sequences);
  const row = (k) => Object.fromEntries(names.map((name) => [name, block.sequences[name][k]]));
  return { ...block, sequences: (block.sequences[names[0]] ?? []).map((_, k) => row(k)) };
}
