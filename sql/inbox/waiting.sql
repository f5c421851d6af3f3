-- grain: one row per query that waits, those submitted first standing first
select q.query_id, q.prompt, q.completion, q.metadata
from query_states s
join queries q on q.query_id = s.query_id
where s.state = 'waiting'
order by s.submitted_at, s.query_id
limit $most
