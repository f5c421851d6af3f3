-- grain: one row per query with an answer, in the order in which queries were handed in
select a.query_id, q.prompt, q.completion
from (select distinct query_id from annotated_sequences() where annotator is not null) a
left join queries q on q.query_id = a.query_id
order by q.submitted_at, a.query_id
