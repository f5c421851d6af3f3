-- grain: one row per (query, sequence): the first sequences of each query that raised it, and the texts that people read
-- not those that lowered the completion; without token influences there is no sparsity
with first as (
    select i.query_id, i.sequence_id, i.influence, i.influence_rank
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run
      and i.influence_rank <= $first
      and i.influence > 0
      and (len($queries) = 0 or list_contains($queries, i.query_id))
),
by_position as (
    select t.query_id, t.sequence_id, t.position, any_value(t.token) as token, sum(t.influence) as influence
    from token_influences t
    join first f on f.query_id = t.query_id and f.sequence_id = t.sequence_id
    where t.run_id = $run
    group by t.query_id, t.sequence_id, t.position
),
tokens as (
    select
        query_id,
        sequence_id,
        token_sparsity(influence) as sparsity,
        list(token order by position) as tokens,
        list(influence order by position) as token_influences
    from by_position
    group by query_id, sequence_id
),
-- Cut before anything else is joined: whole documents, once per row, would fill the memory.
texts as materialized (
    select
        s.sequence_id,
        substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint) as text
    from sequences s
    left join documents d on d.document_id = s.document_id
    where s.sequence_id in (select sequence_id from first)
)
select
    f.query_id,
    f.sequence_id,
    q.prompt || q.completion as reference,
    x.text as target,
    f.influence,
    f.influence_rank,
    t.sparsity,
    t.tokens,
    t.token_influences
from first f
join queries q on q.query_id = f.query_id
left join texts x on x.sequence_id = f.sequence_id
left join tokens t on t.query_id = f.query_id and t.sequence_id = f.sequence_id
order by q.submitted_at, f.query_id, f.influence_rank
