-- grain: one row per document_id that a new part would bring a second time
-- not a check of the whole corpus: parts already there were checked when they came
with kept as (
    select document_id
    from stored.documents
    where document_id in (select document_id from staged_documents)
      and document_id in (select document_id from stored.sequences where list_contains($parts, part))
)
select document_id
from (select document_id from staged_documents union all select distinct document_id from kept)
group by document_id
having count(*) > 1
order by document_id
