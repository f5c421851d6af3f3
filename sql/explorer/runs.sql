-- grain: one row per complete run, the latest first, as a reader chooses among them
with asked as (
    select run_id, count(*) as n_queries
    from run_queries
    group by run_id
)
select r.run_id, r.method, r.model, r.finished_at, coalesce(a.n_queries, 0) as n_queries
from runs r
left join asked a on a.run_id = r.run_id
order by r.finished_at desc, r.run_id
