-- grain: one row per (sequence, query) of a run's candidates, for the queries given; `query` counts them from 0
select distinct c.sequence_id, list_position($queries, c.query_id) - 1 as query
from run_candidates c
where list_contains($queries, c.query_id)
order by c.sequence_id, query
