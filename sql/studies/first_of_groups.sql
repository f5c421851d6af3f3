-- grain: one row per (group, rank): the first sequences of one query of each group, that which was submitted first
-- of the queries that some sequence raised
with raised as (
    select i.query_id, i.influence_rank as rank, i.sequence_id, i.influence
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run and i.influence > 0 and i.influence_rank <= $n
),
chosen as (
    select
        coalesce(q.metadata ->> '$.group', 'no group') as query_group,
        min_by(q.query_id, (q.submitted_at, q.query_id)) as query_id
    from queries q
    where q.query_id in (select query_id from raised)
    group by query_group
)
select
    c.query_group,
    c.query_id,
    q.prompt,
    q.completion,
    f.rank,
    f.sequence_id,
    f.influence,
    substring(d.text, (s.start_char + 1)::bigint, least(s.end_char - s.start_char, 160)::bigint) as text
from chosen c
join queries q on q.query_id = c.query_id
join raised f on f.query_id = c.query_id
join sequences s on s.sequence_id = f.sequence_id
join documents d on d.document_id = s.document_id
order by c.query_group, f.rank
