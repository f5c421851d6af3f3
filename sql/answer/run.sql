-- grain: one row: the run that is being told
select run_id, method, n_sequences, factors_id, parameters
from runs
where run_id = $run
