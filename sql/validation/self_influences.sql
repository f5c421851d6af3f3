-- grain: one row per sequence that has a self-influence under these factors: what an inspection may rank it by
-- not documents: a document of several sequences is as suspect as the worst of them
select
    s.sequence_id,
    s.document_id,
    (d.metadata ->> '$.swapped')::boolean as swapped,
    i.self_influence,
    i.gradient_norm
from self_influences i
join sequences s on s.sequence_id = i.sequence_id
join documents d on d.document_id = s.document_id
where i.factors_id = $factors
order by s.sequence_id
