-- grain: one row per top sequence of one query, with the module that holds most of its influence
with top as (
    select *
    from top_influences($query, k := $k, by := $by, run := $run)
),
strongest as (
    select sequence_id, max_by(module, influence) as strongest_module
    from layer_influences
    where run_id = $run and query_id = $query and sequence_id in (select sequence_id from top)
    group by sequence_id
)
select t.*, regexp_replace(s.strongest_module, '^(transformer|model|gpt_neox)\.', '') as strongest_module
from top t
left join strongest s using (sequence_id)
order by t.rank
