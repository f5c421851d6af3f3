-- grain: one row per (probing, set, query, kind of wording): mean influence of its texts, and as a part of the first kind's
-- a part is null where texts that keep the order did not raise the completion
with texts as (
    select probing_id, probe_set, query_id, probe, probe_group, min(probe) over same as place, sum(influence) as influence
    from probe_influences
    where list_contains($probings, probing_id)
    group by probing_id, probe_set, query_id, probe, probe_group
    window same as (partition by probing_id, probe_set, query_id, probe_group)
),
kinds as (
    select
        probing_id, probe_set, query_id, probe_group,
        min(place) as place,
        count(*) as n_texts,
        avg(influence) as influence
    from texts
    group by probing_id, probe_set, query_id, probe_group
),
kept as (
    select probing_id, probe_set, query_id, influence from kinds where probe_group = 'order kept'
)
select k.*, case when o.influence > 0 then k.influence / o.influence end as part_of_kept
from kinds k
join kept o on o.probing_id = k.probing_id and o.probe_set = k.probe_set and o.query_id = k.query_id
order by k.probing_id, k.probe_set, k.query_id, k.place
