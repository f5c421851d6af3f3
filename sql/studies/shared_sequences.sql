-- grain: one row per (group, other group): how many of their first sequences two queries have in common, as a share
-- mean over pairs of two different queries, one of each group; both ways round, and within a group; null without a pair
with first as (
    select distinct query_id, sequence_id
    from layer_distribution(run := $run, k := $k)
),
sized as (
    select f.query_id, coalesce(q.metadata ->> '$.group', 'no group') as query_group, count(*) as n
    from first f
    join queries q on q.query_id = f.query_id
    group by f.query_id, query_group
),
common as (
    select a.query_id, b.query_id as other_id, count(*) as n_common
    from first a
    join first b on b.sequence_id = a.sequence_id and b.query_id <> a.query_id
    group by a.query_id, b.query_id
)
select
    a.query_group,
    b.query_group as other_group,
    avg(coalesce(c.n_common, 0) / least(a.n, b.n)) filter (where a.query_id <> b.query_id) as shared
from sized a
cross join sized b
left join common c on c.query_id = a.query_id and c.other_id = b.query_id
group by a.query_group, b.query_group
order by a.query_group, b.query_group
