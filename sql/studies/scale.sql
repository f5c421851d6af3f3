-- grain: one row per (run, query that all runs share, rank): a query's first sequences under each model
-- words are those of prompt and completion; `elsewhere` counts the other runs that have the sequence among their first
with shared as (
    select query_id
    from run_queries
    where list_contains($runs, run_id)
    group by query_id
    having count(distinct run_id) = len($runs)
),
first as (
    select i.run_id, i.query_id, i.influence_rank, i.sequence_id, i.influence
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    join shared s on s.query_id = i.query_id
    where list_contains($runs, i.run_id) and i.influence_rank <= $k and i.influence > 0
)
select
    f.run_id,
    f.query_id,
    f.influence_rank as rank,
    f.sequence_id,
    f.influence,
    word_overlap(
        q.prompt || q.completion,
        substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint)
    ) as word_overlap,
    count(*) over (partition by f.query_id, f.sequence_id) - 1 as elsewhere,
    substring(d.text, (s.start_char + 1)::bigint, least(s.end_char - s.start_char, 160)::bigint) as text
from first f
join queries q on q.query_id = f.query_id
join sequences s on s.sequence_id = f.sequence_id
join documents d on d.document_id = s.document_id
order by f.query_id, f.influence_rank, f.run_id
