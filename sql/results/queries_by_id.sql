-- grain: one row per known query among the ids asked
select query_id, prompt, completion
from queries
where list_contains($ids, query_id)
