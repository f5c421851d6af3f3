-- grain: query that a document answers, with the ids of its proponents in order
-- not the candidates, and no row for a query whose fact no document holds
with stated as (
    select distinct doc_id, unnest(facts) as fact
    from abstracts
)
select q.query_id, list(s.doc_id order by s.doc_id) as doc_ids
from queries q
join stated s using (fact)
group by q.query_id
order by q.query_id
