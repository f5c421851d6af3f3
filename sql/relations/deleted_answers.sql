-- grain: one row per (query, run that answered it and was deleted since)
-- not the stored table: while files are merged a row stands in two of them
create or replace view deleted_answers as
select distinct query_id, run_id, deleted_at
from stored.deleted_answers
