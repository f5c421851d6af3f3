-- grain: one row: what a corpus part really holds, to be held against its manifest
select
    (select count(*) from part_documents) as n_documents,
    count(*) as n_sequences,
    count(distinct sequence_id) as n_ids,
    min(sequence_id) as first_id,
    max(sequence_id) as last_id,
    coalesce(sum(len(token_ids)), 0)::bigint as n_tokens,
    count(*) filter (where len(token_ids) is distinct from n_tokens) as n_miscounted,
    count(*) filter (where part is distinct from $part) as n_of_others,
    (
        select count(*)
        from part_sequences s
        anti join part_documents d on d.document_id = s.document_id
    ) as n_without_document
from part_sequences
