-- grain: one row per query of the files that become one, as it came first: sql/relations/queries.sql
select query_id, prompt, completion, submitted_at, metadata
from chosen
qualify row_number() over (partition by query_id order by submitted_at, prompt, completion) = 1
order by submitted_at, query_id
