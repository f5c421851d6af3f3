-- grain: one row: how much of the model one run attributes
select
    count(*) filter (where tracked) as n_tracked,
    count(*) as n_modules,
    coalesce(sum(parameters) filter (where tracked), 0)::bigint as tracked_parameters,
    sum(parameters)::bigint as parameters
from modules
where run_id = $run
