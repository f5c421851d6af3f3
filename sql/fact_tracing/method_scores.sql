-- grain: one row per pair of `pairs`, in their order: its influence under one method, null where it has none
select i.influence, i.relative_influence
from pairs p
left join influences i
    on i.run_id = $run and i.method = $method and i.query_id = p.query_id and i.sequence_id = p.sequence_id
order by p.pair
