-- grain: one row per sequence that is a candidate of any query of the run
select distinct sequence_id
from run_candidates
order by sequence_id
