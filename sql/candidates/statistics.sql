-- grain: one row per document frequency: how many terms of the readable shards have it, over all of them
with summed as (
    select term_id, sum(document_frequency)::bigint as document_frequency
    from shard_terms
    group by term_id
)
select document_frequency, count(*) as n_terms
from summed
group by document_frequency
order by document_frequency
