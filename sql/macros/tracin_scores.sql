-- grain: one row per (query, sequence): TracIn over a run's checkpoints, in any of its forms
-- not stored: `influences` holds the form that the run was asked for, this the others; the parameters are those of tracin_by_group
create or replace macro tracin_scores(
    run,
    parameter_groups := ['all'],
    normalise := 'unit',
    weights := 'mean',
    scaled := false,
    first_step := 1,
    last_step := 2147483647,
    relation := 'checkpoint_influences'
) as table
select query_id, sequence_id, sum(share order by parameter_group) as influence
from tracin_by_group(
    run,
    parameter_groups := parameter_groups,
    normalise := normalise,
    weights := weights,
    scaled := scaled,
    first_step := first_step,
    last_step := last_step,
    relation := relation
)
group by query_id, sequence_id
