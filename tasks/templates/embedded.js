// Data of a page that stands alone: blocks of gzipped JSON in the page itself, one per query.

const blocks = new Map(
  [...document.querySelectorAll("script.query-data")].map((script) => [script.dataset.query, script]),
);
const queryIds = [...blocks.keys()];
const isReadable = "DecompressionStream" in window;

async function blockOf(query) {
  const bytes = Uint8Array.from(atob(blocks.get(query).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}
