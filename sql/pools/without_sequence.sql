-- grain: one row per (query, document) of `ranked` whose document has no training sequence, so that nothing can rank it
-- not a document that stands for another of the same text
select distinct r.query_id, r.document_id
from ranked r
anti join sequences s on s.document_id = r.document_id
order by r.query_id, r.document_id
