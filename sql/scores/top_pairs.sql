-- grain: one row per (query, sequence) to score again exactly
-- the top k by influence and the top k by relative influence, so that either ranking has exact rows at its head
with summed as (
    select query_id, sequence_id, sum(influence::double) as influence
    from staged_scored
    where method = $method
    group by query_id, sequence_id
),
related as (
    select s.query_id, s.sequence_id, s.influence, s.influence / sqrt(nullif(f.self_influence, 0)) as relative
    from summed s
    left join self_influences f on f.factors_id = $factors_id and f.sequence_id = s.sequence_id
),
ranked as (
    select
        query_id,
        sequence_id,
        row_number() over (partition by query_id order by influence desc, sequence_id) as by_influence,
        row_number() over (partition by query_id order by relative desc nulls last, sequence_id) as by_relative
    from related
)
select query_id, sequence_id
from ranked
where by_influence <= $k or by_relative <= $k
order by query_id, sequence_id
