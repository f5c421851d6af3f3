-- grain: one row per model of the store: its latest complete run that splits influence by layer, and its size
-- a model is told by its weights; parameters are those of all modules, attributed or not
with layered as (
    select distinct run_id from layer_influences
),
latest as (
    select r.run_id, r.model, r.model_fingerprint, r.method
    from runs r
    join layered l on l.run_id = r.run_id
    qualify row_number() over (partition by r.model_fingerprint order by r.finished_at desc, r.run_id) = 1
)
select l.run_id, l.model, l.method, sum(m.parameters)::bigint as n_parameters
from latest l
join modules m on m.run_id = l.run_id
group by l.run_id, l.model, l.method
order by n_parameters, l.run_id
