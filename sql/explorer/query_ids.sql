-- grain: one row per query of the run
select query_id
from run_queries
where run_id = $run
order by query_id
