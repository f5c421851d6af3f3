-- grain: one row per (probing, query, language, sequence): the influence of one sequence on the query in one language
-- kind is `first` for sequences that raised the query most in its first language, `random` for the floor beside them
with summed as (
    select probing_id, probe_set, query_id, probe, probe_group, sum(influence) as influence
    from probe_influences
    where list_contains($probings, probing_id)
    group by probing_id, probe_set, query_id, probe, probe_group
)
select
    i.probing_id,
    i.probe_set as query,
    q.metadata ->> '$.language' as language,
    i.probe_group as kind,
    i.probe + 1 as rank,
    s.sequence_id,
    i.influence
from summed i
join probe_queries q on q.probing_id = i.probing_id and q.probe_set = i.probe_set and q.query_id = i.query_id
join probe_sequences s on s.probing_id = i.probing_id and s.probe_set = i.probe_set and s.probe = i.probe
order by i.probing_id, i.probe_set, language, kind, rank
