-- grain: one row per (run, query, sequence, module), of the run's own method
-- exact where the sequence was scored again, from rank-r query gradients elsewhere
with exact_pairs as (
    select distinct query_id, sequence_id
    from staged_exact_layers
),
approximate as (
    select s.query_id, s.sequence_id, s.module, s.influence::double as influence
    from staged_scored s
    anti join exact_pairs e on e.query_id = s.query_id and e.sequence_id = s.sequence_id
    where s.method = $method
),
combined as (
    select query_id, sequence_id, module, influence from staged_exact_layers
    union all
    select query_id, sequence_id, module, influence from approximate
),
named as (
    select
        query_id,
        sequence_id,
        list_extract($layers, module + 1)::integer as layer,
        list_extract($modules, module + 1) as module,
        influence
    from combined
),
trajectory as (
    select query_id, sequence_id, layer, parameter_group as module, share as influence
    from tracin_by_group(
        $run_id,
        parameter_groups := $parameter_groups,
        normalise := $normalise,
        weights := $weights,
        scaled := $scaled,
        first_step := $first_step,
        relation := 'run_checkpoint_influences'
    )
    where $method = 'tracin'
),
together as (
    select * from named
    union all select * from trajectory
)
select $run_id as run_id, query_id, sequence_id, layer, module, influence
from together
order by query_id, sequence_id, layer, module
