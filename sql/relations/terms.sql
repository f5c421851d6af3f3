-- grain: one row per term over all shards
-- not the stored table, which has one row per (shard, term)
create or replace view terms as
select term_id, sum(document_frequency)::bigint as document_frequency
from stored.terms
group by term_id
