-- grain: one row per sequence of a part, with every column that a prefilter may name
-- not yet filtered: storage/prefilter.py puts the user's expression over it
select
    s.sequence_id,
    d.document_id,
    s.part,
    d.text,
    d.source,
    d.metadata::json as metadata,
    s.start_char,
    s.end_char,
    s.token_ids,
    s.n_tokens
from part_sequences s
join part_documents d on d.document_id = s.document_id
