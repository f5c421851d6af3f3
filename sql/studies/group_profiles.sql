-- grain: one row per (group of queries, layer): the mean share of a layer over each query's k most influential sequences
-- a query's group is the `group` of its metadata; queries without one stand together
with of_query as (
    select query_id, layer, avg(share) as share
    from layer_distribution(run := $run, k := $k)
    group by query_id, layer
)
select
    coalesce(q.metadata ->> '$.group', 'no group') as query_group,
    o.layer,
    avg(o.share) as share,
    count(*) as n_queries
from of_query o
join queries q on q.query_id = o.query_id
group by query_group, o.layer
order by query_group, o.layer
