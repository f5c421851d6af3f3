-- grain: one row per failed attempt in the files that become one
select distinct query_id, failed_at, error
from chosen
order by failed_at, query_id
