-- grain: one row per query, with its metadata as JSON
create or replace view queries as
select query_id, prompt, completion, submitted_at, metadata::json as metadata
from stored.queries
