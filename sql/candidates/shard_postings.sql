-- grain: one row per (term, sequence) of one shard, for the terms asked
-- document_frequency is over all shards
select
    p.term_id,
    p.sequence_id,
    p.term_frequency,
    s.n_tokens,
    t.document_frequency
from part_postings p
join part_sequences s using (sequence_id)
join terms t using (term_id)
where list_contains($terms, p.term_id)
order by p.term_id, p.sequence_id
