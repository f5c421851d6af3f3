-- grain: one row per (probing, query, language): what sequences do for a query in it, as a part of the first language's
-- the divisor is what the first sequences do for the query in its first language, also of those drawn at random
with summed as (
    select probing_id, probe_set, query_id, probe, probe_group, sum(influence) as influence
    from probe_influences
    where list_contains($probings, probing_id)
    group by probing_id, probe_set, query_id, probe, probe_group
),
means as (
    select
        i.probing_id,
        i.probe_set,
        q.metadata ->> '$.language' as language,
        any_value(q.log_probability) as log_probability,
        any_value(q.n_completion_tokens) as n_completion_tokens,
        avg(i.influence) filter (where i.probe_group = 'first') as of_first,
        avg(i.influence) filter (where i.probe_group = 'random') as of_random
    from summed i
    join probe_queries q on q.probing_id = i.probing_id and q.probe_set = i.probe_set and q.query_id = i.query_id
    group by i.probing_id, i.probe_set, language
),
wholes as (
    select probing_id, probe_set, of_first as whole
    from means
    where language = $first
)
select
    m.probing_id,
    m.probe_set as query,
    m.language,
    m.log_probability / m.n_completion_tokens as log_probability_per_token,
    m.of_first,
    m.of_random,
    m.of_first / w.whole as first_ratio,
    m.of_random / w.whole as random_ratio
from means m
join wholes w on w.probing_id = m.probing_id and w.probe_set = m.probe_set
order by m.probing_id, m.probe_set, m.language
