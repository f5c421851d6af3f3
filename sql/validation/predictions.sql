-- grain: one row per (method, query, retraining) of one run and one study: summed influence against retrained log p, nats
-- not the sum over what a retraining was taught, which differs from this one by a constant: that over what it lacks, negated
with predictions as (
    select i.method, i.query_id, r.retraining, -sum(i.influence order by i.influence) as predicted
    from removals r
    join influences i on i.sequence_id = r.sequence_id
    where r.study_id = $study and list_contains($retrainings, r.retraining) and i.run_id = $run
    group by all
),
measurements as (
    select query_id, retraining, -avg(loss) as measured
    from retrainings
    where study_id = $study and list_contains($retrainings, retraining)
    group by all
)
select p.method, p.query_id, p.retraining, p.predicted, m.measured
from predictions p
join measurements m on m.query_id = p.query_id and m.retraining = p.retraining
order by p.method, p.query_id, p.retraining
