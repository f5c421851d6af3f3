-- grain: one row per dataset that documents name in their source or in a field; null: documents that name none
-- not every document: one may have no sequence of its own, where sequences cross documents
with named as (
    select
        document_id,
        case $by when 'source' then source else json_extract_string(metadata, '$."' || $by || '"') end as dataset
    from documents
)
select
    n.dataset,
    min(n.document_id) as first_document,
    count(distinct n.document_id) as n_documents,
    list(s.sequence_id order by s.sequence_id) filter (where s.sequence_id is not null) as sequence_ids
from named n
left join sequences s on s.document_id = n.document_id
group by n.dataset
order by n.dataset nulls first
