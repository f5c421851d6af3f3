-- grain: one row per term asked that any readable shard holds
select term_id, sum(document_frequency)::bigint as document_frequency
from shard_terms
where list_contains($terms, term_id)
group by term_id
