-- grain: one row per (pair of `pairs`, checkpoint): inner product and lengths of one group's gradients
select
    p.pair,
    c.checkpoint,
    c.dot,
    c.query_norm,
    c.sequence_norm,
    c.scaled_dot,
    c.scaled_query_norm,
    c.scaled_sequence_norm
from checkpoint_influences c
join pairs p on p.query_id = c.query_id and p.sequence_id = c.sequence_id
where c.run_id = $run and c.parameter_group = $group
