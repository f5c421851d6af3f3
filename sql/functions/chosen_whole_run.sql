-- grain: at most one row: the run that a macro over all queries means: the latest complete one, or the one named
create or replace macro chosen_whole_run(run) as table
select run_id, method, n_sequences, model
from runs
where run = 'latest' or run_id = run
order by finished_at desc, run_id
limit 1
