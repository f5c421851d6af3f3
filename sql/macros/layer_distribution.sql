-- grain: one row per (query, sequence, layer): the part of a sequence's positive influence that acts in a layer
-- of the k sequences that raised each query most in one run; what layers take away is in `influence`, not in `share`
create or replace macro layer_distribution(run := 'latest', k := 500) as table
with named as (
    from chosen_whole_run(run)
),
top as (
    select i.run_id, i.query_id, i.sequence_id, i.influence_rank
    from influences i
    join named n on n.run_id = i.run_id and n.method = i.method
    where i.influence > 0 and i.influence_rank <= k
),
by_layer as (
    select t.query_id, t.influence_rank, t.sequence_id, l.layer, sum(l.influence) as influence
    from layer_influences l
    join top t on t.run_id = l.run_id and t.query_id = l.query_id and t.sequence_id = l.sequence_id
    group by t.query_id, t.influence_rank, t.sequence_id, l.layer
),
shares as (
    select
        *,
        greatest(influence, 0) / sum(greatest(influence, 0)) over (partition by query_id, sequence_id) as share
    from by_layer
)
select *, sum(layer * share) over (partition by query_id, sequence_id) as centre_of_mass
from shares
order by query_id, influence_rank, layer
