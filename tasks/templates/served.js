// Data of a page that a server answers for: it reads a query's block from the store when it is asked.

const queryIds = about.query_ids;
const isReadable = true;

const blockOf = (query) => answer("blocks?" + new URLSearchParams({ run: about.run.id, query }));

/** What the server says, as JSON; an Error with its words where it refuses or is gone. */
async function answer(path, options = {}) {
  const said = await fetch(path, options).catch(() => {
    throw new Error("The explorer does not answer: it was ended. Start it again: headwater explore.");
  });
  const body = await said.json();
  if (!said.ok) throw new Error(body.error);
  return body;
}
