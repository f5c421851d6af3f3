-- grain: one row per (term, sequence) of one corpus part, sorted by term for pruning
-- not over the corpus: document frequencies are summed over shards when a query comes
with tokens as (
    select unnest(token_ids) as term_id, sequence_id
    from part_sequences
)
select term_id, sequence_id, count(*)::integer as term_frequency
from tokens
group by term_id, sequence_id
order by term_id, sequence_id
