-- grain: one row per (method, query): linear datamodelling score of a run over the random subsets of a study
-- not an interval: those stand in `evaluations`
create or replace macro datamodelling_scores(study, run) as table
with left_out as (
    select r.retraining, r.sequence_id
    from removals r
    where r.study_id = study
      and r.retraining in (select s.retraining from retrainings s where s.study_id = study and s.kind = 'subset')
),
predictions as (
    select i.method, i.query_id, l.retraining, -sum(i.influence order by i.influence) as predicted
    from left_out l
    join influences i on i.sequence_id = l.sequence_id
    where i.run_id = run
    group by i.method, i.query_id, l.retraining
),
measurements as (
    select m.query_id, m.retraining, -avg(m.loss) as measured
    from retrainings m
    where m.study_id = study
    group by m.query_id, m.retraining
),
ranked as (
    select
        p.method,
        p.query_id,
        rank() over (partition by p.method, p.query_id order by p.predicted)
        + (count(*) over (partition by p.method, p.query_id, p.predicted) - 1) / 2 as predicted_rank,
        rank() over (partition by p.method, p.query_id order by m.measured)
        + (count(*) over (partition by p.method, p.query_id, m.measured) - 1) / 2 as measured_rank
    from predictions p
    join measurements m on m.query_id = p.query_id and m.retraining = p.retraining
)
select method, query_id, coalesce(corr(predicted_rank, measured_rank), 0) as lds, count(*) as n_subsets
from ranked
group by method, query_id
order by method, query_id
