-- grain: one row per query of the files that become one, as it was first handed in
select query_id, min(submitted_at) as submitted_at
from chosen
group by query_id
order by submitted_at, query_id
