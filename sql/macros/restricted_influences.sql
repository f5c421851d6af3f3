-- grain: one row per (query, region of the network, sequence): a query's first k sequences where that region alone counts
-- regions are the lower, middle and upper third of the layers, as `layer_bands` has them, and all that is attributed
create or replace macro restricted_influences(run := 'latest', k := 10) as table
with named as (
    from chosen_whole_run(run)
),
by_part as (
    select l.query_id, unnest([b.third, 'all']) as region, l.sequence_id, l.influence
    from layer_influences l
    join named n on n.run_id = l.run_id
    join layer_bands(run := run) b on b.layer = l.layer
),
summed as (
    select query_id, region, sequence_id, sum(influence) as influence
    from by_part
    where region is not null
    group by query_id, region, sequence_id
),
ranked as (
    select
        *,
        row_number() over (partition by query_id, region order by influence desc, sequence_id)::integer as place
    from summed
    where influence > 0
)
select query_id, region, place as rank, sequence_id, influence
from ranked
where place <= k
order by query_id, region, place
