-- grain: one row per (query, scored sequence that shares a phrase with it): how much of the query stands there verbatim
-- a phrase is a run of five words of prompt and completion, or all of them where they are fewer; case and points do not count
create or replace macro quotations(run := 'latest') as table
with named as (
    from chosen_whole_run(run)
),
asked as (
    select a.query_id, words_of(q.prompt || q.completion) as words
    from run_queries a
    join named n on n.run_id = a.run_id
    join queries q on q.query_id = a.query_id
),
starts as (
    select query_id, words, unnest(range(1, greatest(len(words) - 4, 1) + 1)) as start
    from asked
    where len(words) > 0
),
phrases as (
    select distinct query_id, ' ' || array_to_string(list_slice(words, start, start + 4), ' ') || ' ' as phrase
    from starts
),
numbers as (
    select query_id, count(*) as n from phrases group by query_id
),
scored as (
    select i.query_id, i.sequence_id, i.influence, i.influence_rank
    from influences i
    join named n on n.run_id = i.run_id and n.method = i.method
),
read as (
    select distinct sequence_id from scored
),
texts as (
    select
        r.sequence_id,
        ' ' || array_to_string(
            words_of(substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint)), ' '
        ) || ' ' as text
    from read r
    join sequences s on s.sequence_id = r.sequence_id
    join documents d on d.document_id = s.document_id
),
shared as (
    select p.query_id, t.sequence_id, count(*) as n_phrases
    from phrases p
    join texts t on contains(t.text, p.phrase)
    group by p.query_id, t.sequence_id
)
select
    c.query_id,
    c.sequence_id,
    c.influence_rank,
    c.influence,
    h.n_phrases,
    h.n_phrases / n.n as share_of_phrases
from scored c
join shared h on h.query_id = c.query_id and h.sequence_id = c.sequence_id
join numbers n on n.query_id = c.query_id
order by c.query_id, c.influence_rank
