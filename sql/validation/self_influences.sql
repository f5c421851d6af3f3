-- grain: one row per sequence that has both self-influences and a trajectory: what an inspection may rank it by
-- not documents: a document of several sequences is as suspect as the worst of them
with trajectories as (
    select
        sequence_id,
        avg(exp(-loss) order by checkpoint) as confidence,
        sum(learning_rate * gradient_norm ** 2 order by checkpoint) as tracin
    from answer_trajectories
    where factors_id = $factors and checkpoint > 0
    group by sequence_id
)
select
    s.sequence_id,
    s.document_id,
    (d.metadata ->> '$.swapped')::boolean as swapped,
    i.self_influence,
    i.gradient_norm,
    a.self_influence as answer_self_influence,
    a.gradient_norm as answer_gradient_norm,
    a.loss as answer_loss,
    a.contradiction,
    t.confidence,
    t.tracin as answer_tracin
from self_influences i
join answer_influences a on a.factors_id = i.factors_id and a.sequence_id = i.sequence_id
join trajectories t on t.sequence_id = i.sequence_id
join sequences s on s.sequence_id = i.sequence_id
join documents d on d.document_id = s.document_id
where i.factors_id = $factors
order by s.sequence_id
