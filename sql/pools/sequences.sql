-- grain: one row per (query, sequence) of the documents of `ranked`
select distinct r.query_id, s.sequence_id
from ranked r
join sequences s on s.document_id = r.document_id
