-- grain: one row per query of a run whose outcomes at its checkpoints are known: what training did to it
-- known: among the first three answers at the first checkpoint; learned: not so, and the first answer at the last one
with ends as (
    select min(checkpoint) as first_step, max(checkpoint) as last_step
    from query_outcomes
    where run_id = $run
)
select
    o.query_id,
    case
        when bool_or(o.is_among_three) filter (where o.checkpoint = e.first_step) then 'known'
        when bool_or(o.is_first) filter (where o.checkpoint = e.last_step) then 'learned'
        else 'never'
    end as slice
from query_outcomes o
cross join ends e
where o.run_id = $run
group by o.query_id
order by o.query_id
