-- grain: at most one row: the run named, or the one that finished last
select *
from runs
where $run = 'latest' or run_id = $run
order by finished_at desc, run_id
limit 1
