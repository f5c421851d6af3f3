-- grain: one row per (probing, set, query, probe): a text and its influence, of the first sets
with found as (
    select probing_id, probe_set, query_id, probe, probe_group, text, sum(influence) as influence
    from probe_influences
    where list_contains($probings, probing_id)
    group by probing_id, probe_set, query_id, probe, probe_group, text
)
select *
from found
qualify dense_rank() over (order by probe_set) <= $sets
order by probing_id, probe_set, query_id, probe
