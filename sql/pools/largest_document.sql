-- grain: one row: the number of sequences that the most cut document has, and the number of documents with any
with cut as (
    select document_id, count(*) as n_sequences
    from sequences
    group by document_id
)
select coalesce(max(n_sequences), 0) as most_sequences, count(*) as n_documents
from cut
