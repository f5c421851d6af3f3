-- grain: one row per word over all shards
-- not the stored table, which has one row per (shard, word)
create or replace view words as
select term_id, word, sum(document_frequency)::bigint as document_frequency
from stored.words
group by term_id, word
