-- grain: one row per (query, checkpoint): the length of its gradient over all groups of parameters
with lengths as (
    select query_id, checkpoint, parameter_group, any_value(query_norm) as query_norm
    from checkpoint_influences
    where run_id = $run
    group by query_id, checkpoint, parameter_group
)
select query_id, checkpoint, sqrt(sum(query_norm ** 2 order by parameter_group)) as query_norm
from lengths
group by query_id, checkpoint
order by query_id, checkpoint
