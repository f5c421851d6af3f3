-- grain: one row per failed attempt to trace a query
-- not the stored table: while files are merged an attempt stands in two of them
create or replace view query_failures as
select distinct query_id, failed_at, error
from stored.query_failures
