-- grain: one row: what the shard of an index really holds, to be held against the part that it was made of
select
    (select coalesce(sum(document_frequency), 0)::bigint from shard_terms) as document_frequencies,
    count(*) as n_postings,
    min(sequence_id) as first_id,
    max(sequence_id) as last_id
from shard_postings
