-- grain: one row per (sequence, position) of one query's top sequences, summed over layers
with top as (
    select sequence_id
    from top_influences($query, k := $k, by := $by, run := $run)
)
select t.sequence_id, t.position, any_value(t.token) as token, sum(t.influence) as influence
from token_influences t
where t.run_id = $run and t.query_id = $query and t.sequence_id in (select sequence_id from top)
group by t.sequence_id, t.position
order by t.sequence_id, t.position
