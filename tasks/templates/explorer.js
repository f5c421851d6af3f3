// What only a server can do: choose among the runs of the store, take a new completion, show how its trace goes on.

const OFTEN = 1000; // milliseconds between two looks while a trace is open
const SELDOM = 5000; // … and while none is
const MINE = "headwater-traces"; // names of the traces that this tab asked for, in its own memory: it may be loaded anew
const mine = new Set(JSON.parse(sessionStorage.getItem(MINE) ?? "[]"));
const told = new Map(); // trace → what was last read aloud of it

const element = (id) => document.getElementById(id);
const json = { "content-type": "application/json", "x-headwater-token": about.token };

// Runs

element("runs")?.addEventListener("change", ({ target }) => location.assign("?" + new URLSearchParams({ run: target.value })));

/** Offer runs that were not there when the page was loaded. */
function offerRuns(runs) {
  const [newest] = runs;
  const known = new Set(about.runs.map((run) => run.run_id));
  const fresh = runs.filter((run) => !known.has(run.run_id));
  if (fresh.length === 0) return;
  about.runs = runs;
  if (about.shown === null) return void location.assign("./"); // the first run of the store
  element("runs").prepend(...fresh.map((run) => make("option", { value: run.run_id },
    `${run.finished_at} · ${run.method} · ${figure(run.n_queries)} ${run.n_queries === 1 ? "query" : "queries"} · ${run.run_id}`)));
  const link = make("a", { href: "?" + new URLSearchParams({ run: newest.run_id }) }, "a newer run");
  element("newer").replaceChildren("There is ", link, ".");
}

// The form

const form = element("trace");
const needsSpace = (prompt, completion) =>
  element("spaced").checked && prompt !== "" && completion !== "" && !/\s$/.test(prompt) && !/^\s/.test(completion);

/** The words as they are handed in. */
function words() {
  const [prompt, completion] = [element("prompt").value, element("completion").value];
  return { prompt, completion: needsSpace(prompt, completion) ? " " + completion : completion };
}

/** Control and format characters as their codes, but for joiners and line ends, as the page shows them everywhere. */
const codesOf = (text) => text.replace(/[\p{Cc}\p{Cf}]/gu, (one) =>
  "\n\u200c\u200d".includes(one) ? one : `⟨U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

/** Show where the prompt ends and the completion begins. */
function showSeam() {
  const { prompt, completion } = words();
  element("seam").hidden = completion === "";
  element("seam-prompt").textContent = codesOf(prompt);
  element("seam-completion").textContent = codesOf(completion).replace(/^ /, "␣");
}

async function handIn(event) {
  event.preventDefault();
  const button = form.querySelector("button[type=submit]");
  const candidates = element("candidates").value;
  const chosen = {
    run: about.shown, method: element("method").value || null, filter: element("filter").value || null,
    candidates: candidates === "" ? null : Number(candidates),
  };
  button.disabled = true;
  element("refused").hidden = true;
  try {
    const body = JSON.stringify({ ...words(), ...chosen });
    const trace = await answer("traces", { method: "POST", headers: json, body });
    keep(() => mine.add(trace.name));
    element("completion").value = "";
    showSeam();
    lookAgain(0);
  } catch (error) {
    element("refused").textContent = error.message;
    element("refused").hidden = false;
  } finally {
    button.disabled = false;
  }
}

form?.addEventListener("submit", handIn);
form?.addEventListener("input", showSeam);

// Traces

const WAITS = { Scheduled: "waits for a worker", Late: "waits for a worker: is one running?", Pending: "begins",
  AwaitingConcurrencySlot: "waits for its turn" };

/** What a trace is doing, in a few words. */
function doing(trace, ahead) {
  if (trace.state === "waiting") return ahead === 1 ? "waits for the one before it" : `waits for ${ahead} before it`;
  if (trace.state === "running" && trace.stages.length === 0) return WAITS[trace.flow_state] ?? "begins";
  return { starting: "begins", running: "is traced", done: "is traced", failed: "could not be traced", stopped: "was stopped" }[trace.state];
}

/** One stage: its name, how far it is, its seconds. */
function stageItem(stage) {
  const [isDone, isRunning] = [stage.state === "Completed", stage.state === "Running"];
  const sign = isDone ? "✓" : isRunning ? "…" : "✕";
  const state = isDone ? "done" : isRunning ? "running" : stage.state.toLowerCase();
  const bar = isRunning && stage.percent !== null && stage.percent < 100
    ? make("progress", { max: 100, value: stage.percent, "aria-label": `${stage.name}, ${Math.round(stage.percent)} %` }) : null;
  return make("li", { class: isRunning ? "running" : isDone ? "done" : "broken" },
    make("span", { class: "sign", "aria-hidden": "true" }, sign), make("span", {}, stage.name),
    make("span", { class: "unseen" }, `, ${state}`), bar,
    make("span", { class: "minor" }, ` ${figure(Number(stage.seconds.toPrecision(2)))} s`));
}

/** One trace with its stages, its error and what can be done. */
function traceItem(trace, ahead) {
  const said = make("span", { class: "said" }, foreign(trace.prompt, { class: "prompt" }),
    foreign(trace.completion, { class: "completion" }));
  const stop = () => answer(`traces/${trace.name}/stop`, { method: "POST", headers: json, body: "{}" }).catch(() => null)
    .then(() => lookAgain(0));
  return make("li", { class: `trace ${trace.state}`, "data-trace": trace.name },
    make("p", { class: "what" }, said, " ", make("b", {}, doing(trace, ahead))),
    trace.stages.length ? make("ol", { class: "stages" }, ...trace.stages.map(stageItem)) : null,
    trace.error ? make("p", { class: "reason" }, trace.error) : null,
    trace.next ? make("p", { class: "reason" }, trace.next) : null,
    trace.note ? make("p", { class: "minor" }, trace.note) : null,
    make("p", { class: "choices" },
      trace.run_id ? make("a", { href: answerOf(trace) }, "Open its run") : null,
      trace.link ? make("a", { href: trace.link, rel: "noreferrer", target: "_blank" }, "Prefect UI") : null,
      trace.is_open ? make("button", { type: "button", class: "plain", onclick: stop }, "Stop it") : null));
}

/** Draw what changed, so that a button keeps its focus and a reader aloud its place. */
function drawTraces(traces) {
  const list = element("asked-traces");
  const drawn = new Map([...list.children].map((item) => [item.dataset.trace, item]));
  const shown = traces.filter((trace) => trace.is_open || mine.has(trace.name) || drawn.has(trace.name));
  let ahead = 0;
  for (const trace of shown) {
    const key = JSON.stringify([trace, ahead]);
    const old = drawn.get(trace.name);
    if (old?.drawnAs !== key) {
      const item = traceItem(trace, ahead);
      item.drawnAs = key;
      const held = old?.contains(document.activeElement) ? document.activeElement.textContent : null;
      if (old) old.replaceWith(item);
      else list.append(item);
      if (held !== null) [...item.querySelectorAll("a, button")].find((one) => one.textContent === held)?.focus();
    }
    if (trace.is_open) ahead += 1;
  }
  element("traces").hidden = shown.length === 0;
  tellTraces(shown);
}

/** Read aloud what became of each trace: its state, and the stage that began. */
function tellTraces(shown) {
  for (const trace of shown) {
    const stage = trace.is_open ? trace.stages.at(-1)?.name ?? "" : "";
    const words = `${trace.completion.trim()}: ${doing(trace, 1)}${stage ? `, ${stage}` : ""}. ${trace.error}`;
    if (told.get(trace.name) !== words) element("told").textContent = words;
    told.set(trace.name, words);
  }
}

function keep(change) {
  change();
  sessionStorage.setItem(MINE, JSON.stringify([...mine]));
}

/** The address of the query in the run that a trace made. */
const answerOf = (trace) =>
  "?" + new URLSearchParams({ run: trace.run_id }) + "#q=" + encodeURIComponent(trace.query_id);

/** Open the run of a trace that this tab asked for; not while its reader is at another query. True where it does. */
function openAnswer(traces) {
  const isReading = new URLSearchParams(location.hash.slice(1)).has("q");
  const done = traces.find((trace) => mine.has(trace.name) && trace.run_id !== null);
  if (!done || isReading || traces.some((trace) => mine.has(trace.name) && trace.is_open)) return false;
  keep(() => traces.filter((trace) => trace.run_id !== null).forEach((trace) => mine.delete(trace.name)));
  location.assign(answerOf(done));
  return true;
}

let timer = null;

async function lookAround() {
  let isOpen = false;
  try {
    const { traces } = await answer("traces");
    isOpen = traces.some((trace) => trace.is_open);
    drawTraces(traces);
    if (openAnswer(traces) && about.shown === null) return;
    offerRuns((await answer("runs")).runs);
    element("gone")?.remove();
  } catch (error) {
    if (!element("gone")) element("content").prepend(make("p", { class: "note", id: "gone", role: "alert" }, error.message));
  }
  lookAgain(isOpen ? OFTEN : SELDOM);
}

function lookAgain(delay) {
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? lookAgain(SELDOM) : lookAround()), delay);
}

lookAgain(0);
