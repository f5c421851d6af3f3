// One query above its ranking: what was asked, where in the network it was learnt, how concentrated it is.

/** Everything above the ranking, and the places that the ranking fills. */
function queryView(block) {
  const { query } = block;
  const by = query.rank === null ? "compressed" : `rank-${query.rank}`;
  return [
    neighbours(query.query_id),
    make("h1", { class: "asked", id: "asked", tabindex: -1 }, foreign(query.prompt, { class: "prompt" }),
      foreign(query.completion, { class: "completion" })),
    make("p", { class: "line" },
      fact("log-probability", `${figure(query.log_probability)} nats`),
      fact("probability", percent(Math.exp(query.log_probability))),
      fact("prompt + completion tokens", `${query.n_prompt_tokens} + ${query.n_completion_tokens}`),
      fact("candidates scored", figure(query.n_candidates)),
      query.compression_correlation === null ? null
        : fact(`${by} against exact scores`, `r = ${figure(query.compression_correlation)}`)),
    raisesNothing(block) ? make("p", { class: "note" }, NOTHING_RAISED) : null,
    make("div", { class: "cards" },
      profileCard(block), coverageCard(block), methodsCard(block.methods), auditCard(block.audit)),
    make("div", { id: "ordering" }),
    make("div", { class: "scroll", id: "ranking" }),
  ].filter((part) => part !== null);
}

const NOTHING_RAISED = "No sequence that was scored raised this completion: every influence is zero or negative. "
  + "What stands first here lowered it least.";

/** Whether no influence of the query is positive; its largest is always on the page. */
const raisesNothing = ({ sequences }) => sequences.length > 0 && sequences.every((row) => !(row.influence > 0));

const fact = (name, value) => make("span", {}, `${name} `, make("b", {}, value));
const hint = (text) => make("p", { class: "hint" }, text);
const card = (title, ...content) => make("div", { class: "card" }, make("h2", {}, title), ...content);
const layerName = (layer) => (layer < 0 ? "other" : String(layer));

/** A small table; the names of columns of numbers begin with #. */
function smallTable(names, rows) {
  const heads = names.map((name) =>
    make("th", { class: name.startsWith("#") ? "n" : null, scope: "col" }, name.replace("#", "")));
  return make("table", { class: "small" }, make("thead", {}, make("tr", {}, ...heads)),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells))));
}

const cell = (text) => make("td", {}, text);
const numberCell = (text, attributes = {}) => make("td", { class: "n", ...attributes }, text);

/** Links to the list and to the queries beside this one. */
function neighbours(id) {
  const place = queryIds.indexOf(id);
  const link = (target, text) => (target ? make("a", { href: address({ query: target }) }, text) : null);
  return make("p", { class: "back" }, make("a", { href: "#" }, "← All queries"),
    link(queryIds[place - 1], "Previous"), link(queryIds[place + 1], "Next"));
}

/** Influence by layer. */
function profileCard({ profile, sequences }) {
  if (!about.shares) return null;
  const title = "Where in the network";
  if (profile.length === 0) {
    const exact = sequences.some((row) => row.exact);
    return card(title, hint(exact
      ? "No exactly scored sequence raised this completion, so there is nothing to share among layers."
      : "No sequence of this query was scored exactly, so its layers are not summed."));
  }
  return card(title, layerBars(profile),
    hint("Share of each layer in the influence of the 50 sequences that raised the completion most."));
}

/** A bar for each layer's share, below the line where a layer lowered the completion. */
function layerBars(profile) {
  const [width, height, gap] = [320, 118, profile.length > 16 ? 1 : 5];
  const shares = profile.map((row) => row.share);
  const [top, bottom] = [Math.max(0, ...shares), Math.min(0, ...shares)];
  const step = width / profile.length;
  const every = Math.ceil(profile.length / 16); // labels stand apart however many layers there are
  const y = (share) => 16 + ((top - share) / (top - bottom || 1)) * height;
  const bars = profile.map(({ layer, share }, k) => {
    const [middle, from, to] = [(k + 0.5) * step, Math.min(y(share), y(0)), Math.max(y(share), y(0))];
    const size = { x: k * step + gap / 2, width: Math.max(step - gap, 1), y: from, height: to - from, rx: 2 };
    const value = percent(Number(share.toPrecision(2)));
    return make("g", { class: side(share) },
      make("title", {}, `layer ${layer}: ${percent(share)}`),
      make("rect", size),
      profile.length > 10 ? null : make("text", { class: "value", x: middle, y: from - 5 }, value),
      k % every ? null : make("text", { x: middle, y: height + 36 }, layerName(layer)));
  });
  const spoken = profile.map((row) => `layer ${row.layer} ${percent(row.share)}`).join(", ");
  const frame = { class: "bars", viewBox: `0 0 ${width} ${height + 42}`, role: "img" };
  return make("svg", { ...frame, "aria-label": `Share of influence: ${spoken}` },
    make("line", { x1: 0, x2: width, y1: y(0), y2: y(0) }), ...bars);
}

/** How much of the positive influence the head of the ranking holds. */
function coverageCard(block) {
  const { coverage } = block;
  if (raisesNothing(block)) return card("How concentrated", hint("There is no positive influence to be concentrated."));
  const held = (row) => row.share_of_positive_influence;
  const one = coverage.find((row) => row.top_share === 0.01);
  const rows = coverage.filter((row) => row.top_share < 1).map((row) => [
    numberCell(percent(row.top_share)),
    numberCell(figure(row.n_sequences)),
    numberCell(percent(held(row)), { class: "n meter raised", "--part": held(row) ?? 0 }),
  ]);
  return card("How concentrated",
    one ? make("p", {}, "The top 1 % holds ", make("b", {}, percent(held(one))),
      " of the positive influence of the scored candidates.") : null,
    smallTable(["#top", "#sequences", "#hold"], rows), hint("Shares are rounded up to whole sequences."));
}

/** The run's own method beside the others that scored the same sequences. */
function methodsCard(methods) {
  if (methods.length === 0) return null;
  const own = about.run.method;
  const rows = methods.map((row) => [
    cell(row.method),
    numberCell(figure(row.spearman)),
    numberCell(`${row.shared_top_10} of ${Math.min(10, row.n_shared)}`),
    numberCell(figure(row.own_rank_of_best)),
  ]);
  return card(`${own} beside other methods`,
    smallTable(["method", "#rank correlation", "#shared top 10", "#rank of its best"], rows),
    hint("Spearman's correlation over the sequences that both scored; "
      + `last, the rank that ${own} gives to the other method's best sequence.`));
}

/** What the filter missed of a uniform sample, and the random scan that would find as much as it did. */
function auditCard(audit) {
  if (audit === null) return null;
  const had = audit.n_top - audit.n_missed;
  const { tail_alpha: alpha, scan_budget: budget } = audit;
  return card("What the filter misses",
    audit.n_top === 0
      ? make("p", {}, `No positive influence in a uniform sample of ${figure(audit.n_sample)} sequences.`)
      : make("p", {}, `Of the ${figure(audit.n_top)} largest influences of a uniform sample of `
        + `${figure(audit.n_sample)} sequences the filter had ${figure(had)}: it missed `,
        make("b", {}, percent(audit.missed_share)),
        ` (95 % interval ${percent(audit.ci_low)} to ${percent(audit.ci_high)}).`),
    budget === null ? null
      : make("p", {}, "To match its top 10 by scanning at random: about ",
        make("b", {}, rounded(budget)),
        ` sequences (95 % interval ${rounded(audit.budget_low)} to ${rounded(audit.budget_high)}).`),
    hint(`${audit.reason[0].toUpperCase()}${audit.reason.slice(1)}.`),
    alpha === null ? null
      : hint(`Power-law tail with survival exponent α = ${figure(alpha)} over the sample's `
        + `${figure(audit.tail_n)} largest; goodness of fit p = ${figure(audit.tail_p)}`
        + `${audit.tail_p <= 0.1 ? ", which rejects it." : "."}`));
}

/** A count that was extrapolated: two digits of it mean something. */
const rounded = (count) => (count === null ? "more than can be written" : figure(Number(count.toPrecision(2))));
