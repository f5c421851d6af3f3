-- grain: one row per query of a run, with the sequences that are its candidates
select query_id, list(distinct sequence_id order by sequence_id) as sequence_ids
from run_candidates
group by query_id
