-- grain: one row per person: how many items they answered, how many they found relevant, how often others say the same
-- agreement is over all pairs of answers to one item, null where nobody else answered any of them
with pairs as (
    select a.annotator, count(*) as n_pairs, avg((a.is_relevant = b.is_relevant)::integer) as agreement
    from annotations a
    join annotations b on b.item_id = a.item_id and b.annotator <> a.annotator
    group by a.annotator
)
select
    a.annotator,
    count(*) as n_answers,
    avg(a.is_relevant::integer) as share_relevant,
    coalesce(any_value(p.n_pairs), 0) as n_pairs,
    any_value(p.agreement) as agreement
from annotations a
left join pairs p on p.annotator = a.annotator
group by a.annotator
order by n_answers desc, a.annotator
