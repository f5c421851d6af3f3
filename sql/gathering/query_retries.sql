-- grain: one row per request to try a query again in the files that become one
select distinct query_id, retried_at
from chosen
order by retried_at, query_id
