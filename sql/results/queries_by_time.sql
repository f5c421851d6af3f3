-- grain: one row per query of the store, those submitted first standing first
select query_id, prompt, completion, metadata
from queries
order by submitted_at, query_id
