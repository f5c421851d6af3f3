-- grain: at most one row: the run that a macro means: the latest complete one that holds the query, or the one named
create or replace macro chosen_run(query, run) as table
select q.run_id, r.method
from run_queries q
join runs r on r.run_id = q.run_id
where q.query_id = query and (run = 'latest' or q.run_id = run)
order by r.finished_at desc, q.run_id
limit 1
