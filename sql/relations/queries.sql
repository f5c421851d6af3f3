-- grain: one row per query, with its metadata as JSON
-- not the stored table: a query that was written twice counts once, as it came first
create or replace view queries as
select query_id, prompt, completion, submitted_at, metadata::json as metadata
from stored.queries
qualify row_number() over (partition by query_id order by submitted_at, prompt, completion) = 1
