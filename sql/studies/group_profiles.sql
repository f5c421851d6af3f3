-- grain: one row per (group of queries, band of layers): the mean share of it over each query's k first sequences
-- a query's group is the `group` of its metadata; queries without one stand together; shares of a group sum to 1
with of_query as (
    select query_id, layer, avg(share) as share
    from layer_distribution(run := $run, k := $k)
    group by query_id, layer
),
banded as (
    select
        o.query_id,
        b.band,
        any_value(b.first_layer) as first_layer,
        any_value(b.last_layer) as last_layer,
        sum(o.share) as share
    from of_query o
    join layer_bands(run := $run) b on b.layer = o.layer
    group by o.query_id, b.band
)
select
    coalesce(q.metadata ->> '$.group', 'no group') as query_group,
    b.band,
    b.first_layer,
    b.last_layer,
    avg(b.share) as share,
    count(*) as n_queries
from banded b
join queries q on q.query_id = b.query_id
group by query_group, b.band, b.first_layer, b.last_layer
order by query_group, b.band
