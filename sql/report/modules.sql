-- grain: one row per owner of parameters: is it attributed, under which damping, and what its rank-r form drops
with dropped as (
    select module, max(rank) as rank, avg(residual) as mean_residual, max(residual) as largest_residual
    from query_compressions
    where run_id = $run
    group by module
)
select
    m.module,
    m.kind,
    m.tracked,
    m.reason,
    m.layer,
    m.parameters,
    m.damping,
    d.rank,
    d.mean_residual,
    d.largest_residual
from modules m
left join dropped d on d.module = m.module
where m.run_id = $run
order by m.layer < 0, m.layer, m.tracked desc, m.module
