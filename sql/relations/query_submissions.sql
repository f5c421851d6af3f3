-- grain: one row per query that was handed in
-- not the stored table: while files are merged a row stands in two of them
create or replace view query_submissions as
select query_id, min(submitted_at) as submitted_at
from stored.query_submissions
group by query_id
