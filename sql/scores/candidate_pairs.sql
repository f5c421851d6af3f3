-- grain: one row per (query, sequence) among the candidates of a block
-- not per filter: a sequence that two filters found is scored once
select distinct query_id, sequence_id
from run_candidates
where sequence_id between $first and $last
order by query_id, sequence_id
