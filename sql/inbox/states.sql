-- grain: one row per query among those asked for, by id or, where no id is given, all; the latest submitted first
select query_id, state, run_id, error, failures, failed_at, retried_at, deleted_at, submitted_at
from query_states
where len($ids) = 0 or list_contains($ids, query_id)
order by submitted_at desc, query_id
