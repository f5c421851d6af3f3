-- grain: one row per request to try a query again
-- not the stored table: while files are merged a row stands in two of them
create or replace view query_retries as
select distinct query_id, retried_at
from stored.query_retries
