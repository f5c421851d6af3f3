-- grain: one row per query of a run, in the order in which they were handed in
select a.query_id
from run_queries a
left join queries q on q.query_id = a.query_id
where a.run_id = $run
order by q.submitted_at, a.query_id
