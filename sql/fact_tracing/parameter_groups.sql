-- grain: one row per group of parameters whose gradients a run compared: embedding and head, blocks by number, others
select parameter_group
from checkpoint_influences
where run_id = $run
group by parameter_group
order by
    list_position(['embedding', 'head', 'block', 'other'], split_part(parameter_group, ' ', 1)),
    try_cast(split_part(parameter_group, ' ', 2) as integer)
