-- grain: one row per solver of a run: how far its last iteration left the systems of the run's queries unsolved
-- a residual is relative to the gradient: 1 is no better than zero; solvers of another system have none
with last as (
    select method, query_id, max(iteration) as iterations, arg_max(residual, iteration) as residual
    from solver_residuals
    where run_id = $run and residual is not null
    group by method, query_id
)
select method, max(iterations) as iterations, median(residual) as median, max(residual) as largest
from last
group by method
order by method
