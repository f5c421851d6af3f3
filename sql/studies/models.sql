-- grain: one row per model of the store: the complete run of it that is compared, and its size
-- a model is told by its weights; of its runs that split influence by layer, the one with the most queries that every
-- model was asked is compared, of equals the latest; parameters are those of all modules, attributed or not
with layered as (
    select distinct run_id from layer_influences
),
asked as (
    select r.run_id, r.model, r.model_fingerprint, r.method, r.finished_at, q.query_id
    from runs r
    join layered l on l.run_id = r.run_id
    join run_queries q on q.run_id = r.run_id
),
shared as (
    select query_id
    from asked
    group by query_id
    having count(distinct model_fingerprint) = (select count(distinct model_fingerprint) from asked)
),
compared as (
    select a.run_id, a.model, a.method
    from asked a
    left join shared s on s.query_id = a.query_id
    group by a.run_id, a.model, a.model_fingerprint, a.method, a.finished_at
    qualify row_number() over (
        partition by a.model_fingerprint order by count(s.query_id) desc, a.finished_at desc, a.run_id
    ) = 1
)
select c.run_id, c.model, c.method, sum(m.parameters)::bigint as n_parameters
from compared c
join modules m on m.run_id = c.run_id
group by c.run_id, c.model, c.method
order by n_parameters, c.run_id
