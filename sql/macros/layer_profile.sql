-- grain: one row per layer: where in the network the k most influential sequences act on a query
-- not over all candidates: the exactly scored head only, whose shares are exact
create or replace macro layer_profile(query, k := 50, run := 'latest') as table
with head as (
    select i.run_id, i.sequence_id
    from influences i
    join chosen_run(query, run) c on c.run_id = i.run_id and c.method = i.method
    where i.query_id = query and i.exact and i.influence > 0 and i.influence_rank <= k
)
select
    l.layer,
    sum(l.influence) as influence,
    sum(l.influence) / sum(sum(l.influence)) over () as share
from layer_influences l
join head h on h.run_id = l.run_id and h.sequence_id = l.sequence_id
where l.query_id = query
group by l.layer
order by l.layer
