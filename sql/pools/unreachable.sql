-- grain: one row per query of `asked` none of whose true documents has a training sequence
select a.query_id
from asked a
where not exists (
    select 1
    from truths t
    join sequences s on s.document_id = t.document_id
    where t.query_id = a.query_id
)
order by a.query_id
