-- grain: one row per term of the readable shards, over all of them
select term_id, sum(document_frequency)::bigint as document_frequency
from shard_terms
group by term_id
order by term_id
