-- grain: one row per (query, sequence) of a run's candidates
select distinct query_id, sequence_id
from run_candidates
order by query_id, sequence_id
