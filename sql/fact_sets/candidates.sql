-- grain: query that the set fixes candidates of, with their ids in order, its proponents always among them
-- not for the other queries: their candidates are to be found
with truth as (
    select query_id, unnest(doc_ids) as doc_id
    from proponents
    where query_id in (select query_id from candidates)
),
named as (
    select query_id, doc_id from candidates where query_id in (select query_id from proponents)
    union
    select query_id, doc_id from truth
)
select
    n.query_id,
    list(n.doc_id order by n.doc_id) as doc_ids,
    count(*) - count(c.doc_id) as n_added
from named n
left join (select distinct query_id, doc_id from candidates) c using (query_id, doc_id)
group by n.query_id
order by n.query_id
