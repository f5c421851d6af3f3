// What the page knows of the run, and of each query once it is asked for.
// What shows them knows `about`, `queryIds` and `load` alone; embedded.js and served.js say where a block comes from.

const about = JSON.parse(document.getElementById("about").textContent);
const loading = new Map();

/** Promise of all that is known of a query; its sequences are rows. What failed may be asked for again. */
function load(query) {
  if (!loading.has(query)) {
    const block = blockOf(query).then(withRows);
    block.catch(() => loading.delete(query));
    loading.set(query, block);
  }
  return loading.get(query);
}

/** The columns of the sequences as rows. */
function withRows(block) {
  const names = Object.keys(block.sequences);
  const row = (k) => Object.fromEntries(names.map((name) => [name, block.sequences[name][k]]));
  return { ...block, sequences: (block.sequences[names[0]] ?? []).map((_, k) => row(k)) };
}
