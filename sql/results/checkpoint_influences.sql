-- grain: one row per (run, query, sequence, checkpoint, parameter group)
-- not a score: tracin_scores adds these up
select $run_id as run_id, * exclude (run_id)
from staged_checkpoint_influences
order by query_id, sequence_id, checkpoint, parameter_group
