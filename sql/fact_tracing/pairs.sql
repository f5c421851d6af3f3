-- grain: one row per (query, sequence) that a run compared, numbered from 0
with compared as (
    select distinct query_id, sequence_id
    from candidates
    where run_id = $run
)
select
    c.query_id,
    c.sequence_id,
    s.document_id,
    row_number() over (order by c.query_id, c.sequence_id) - 1 as pair
from compared c
join sequences s on s.sequence_id = c.sequence_id
order by pair
