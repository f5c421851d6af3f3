-- grain: one row per (query, deleted run) of the files that become one
select distinct query_id, run_id, deleted_at
from chosen
order by deleted_at, query_id
