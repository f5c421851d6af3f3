-- grain: one row per sequence that a run's own method scored for a query, with what it holds above 0, and n of the query
create or replace macro positive_influences(run) as table
select
    i.query_id,
    i.influence_rank,
    greatest(i.influence, 0) as influence,
    count(*) over (partition by i.query_id) as n
from influences i
join runs r on r.run_id = i.run_id and r.method = i.method
where i.run_id = run
